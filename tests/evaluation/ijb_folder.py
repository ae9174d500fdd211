"""A folder as IJB-C is released, made up: faces at known points of larger photographs."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from helpers.faces import face

from partialfc.data import images
from partialfc.data.alignment import TEMPLATE

SUBJECTS, SIZE = 12, 112
GALLERIES = (range(6), range(6, SUBJECTS))  # the subjects of G1, G2


@dataclass
class Made:
    """What a folder says, as plain lists."""

    folder: Path
    names: list[str] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)  # as they are when aligned again
    scores: list[float] = field(default_factory=list)
    templates: list[int] = field(default_factory=list)
    media: list[int] = field(default_factory=list)
    subjects: dict[int, int] = field(default_factory=dict)  # of each template
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    galleries: list[list[int]] = field(default_factory=list)
    probes: list[int] = field(default_factory=list)


def made(folder: Path) -> Made:
    """Templates 10, 11, ...: three of each subject, of one to four images, some of one medium."""
    found, draws = Made(folder), np.random.default_rng(0)
    (folder / "loose_crop").mkdir(parents=True)
    (folder / "meta").mkdir()
    points = []
    for template in range(10, 10 + 3 * SUBJECTS):
        subject = (template - 10) // 3
        found.subjects[template] = subject
        for image in range(int(draws.integers(1, 5))):
            slope = draws.uniform(0.8, 1.5) * np.exp(1j * draws.uniform(-0.4, 0.4))
            shift = complex(*draws.uniform(60, 90, 2))
            pixels = images.decode(face(subject, 10 * template + image, SIZE))
            matrix = np.array([[slope.real, -slope.imag, shift.real], [slope.imag, slope.real, shift.imag]])
            photo = cv2.warpAffine(pixels, matrix, (300, 300))
            found.names.append(f"{len(found.names) + 1}.png")
            images.write(folder / "loose_crop" / found.names[-1], photo)
            points.append(slope * TEMPLATE + shift)
            found.faces.append(pixels)
            found.scores.append(round(float(draws.uniform(0.5, 1)), 4))
            found.templates.append(template)
            found.media.append(100 * template + image // 2)
    everyone = sorted(found.subjects)
    found.pairs = [
        (a, b, int(found.subjects[a] == found.subjects[b])) for a in everyone for b in everyone if a < b
    ]
    found.galleries = [[10 + 3 * subject for subject in half] for half in GALLERIES]
    found.probes = [it for it in everyone if (it - 10) % 3]
    write(found, points)
    return found


def write(found: Made, points: list[np.ndarray]) -> None:
    def lines(name: str, rows: list[str]) -> None:
        (found.folder / "meta" / name).write_text("".join(f"{row}\n" for row in rows))

    lines(
        "ijbc_name_5pts_score.txt",
        [
            " ".join([name, *(f"{it.real:.3f} {it.imag:.3f}" for it in five), str(score)])
            for name, five, score in zip(found.names, points, found.scores, strict=True)
        ],
    )
    both = zip(found.names, found.templates, found.media, strict=True)
    lines("ijbc_face_tid_mid.txt", [f"{name} {template} {medium}" for name, template, medium in both])
    lines("ijbc_template_pair_label.txt", [f"{a} {b} {label}" for a, b, label in found.pairs])
    for name, chosen in (
        ("gallery_G1", found.galleries[0]),
        ("gallery_G2", found.galleries[1]),
        ("probe_mixed", found.probes),
    ):
        rows = [f"{it},{found.subjects[it]},img/{it}.jpg,7" for it in chosen for _ in range(2)]
        lines(f"ijbc_1N_{name}.csv", ["TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID", *rows])
