"""Identification sets: a gallery and probes in folders of one's own, and TinyFace."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.evaluation.identification import UNKNOWN_SUBJECT, Subjects, identify
from partialfc.evaluation.sets import SetEvaluation, check_embeddings
from partialfc.runtime.error_messages import format_error

RANKS = (1, 5, 20)
_TINYFACE = {  # folder and, for each group of images, its list of names
    "Gallery_Match": ("gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
    "Probe": ("probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
}


@dataclass(frozen=True)
class Gallery:
    """Identification set: images of the gallery, including distractors (UNKNOWN_SUBJECT), followed by the probes."""

    name: str
    files: Sequence[Path]  # `[n]`
    subjects: Subjects  # `[n]`
    gallery_size: int  # number of gallery images

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, index: int, size: int) -> ImageArray:
        """Return image `index`, uint8 RGB `[size, size, 3]`."""
        return images.read(self.files[index], size)

    def evaluate(self, embeddings: Tensor) -> SetEvaluation:
        """Return the scores of `identify`; no figures."""
        check_embeddings(embeddings, self.name)
        unit = normalize(embeddings).cpu().numpy()
        gallery, probes = slice(self.gallery_size), slice(self.gallery_size, None)
        scores = identify(unit[probes], self.subjects[probes], unit[gallery], self.subjects[gallery], RANKS)
        words = [f"{name.replace('tpir@fpir=', 'TPIR@FPIR ')} {it:.2%}" for name, it in scores.items()]
        return SetEvaluation(scores, ", ".join(words))

    def encoded_image(self, index: int) -> bytes:
        """Return the encoded image `index`."""
        return self.files[index].read_bytes()

    def image_location(self, index: int) -> str:
        """Return a human-readable location of image `index`."""
        return str(self.files[index])

    def exclude(self, excluded: Collection[int]) -> tuple[Self, list[int]]:
        """Return the set without these images, and the indices of its images."""
        kept = [it for it in range(len(self)) if it not in excluded]
        known = sum(it < self.gallery_size for it in kept)
        files, subjects = [self.files[it] for it in kept], self.subjects[kept]
        return replace(self, files=files, subjects=subjects, gallery_size=known), kept


def is_gallery(folder: Path) -> bool:
    """Return True if the folder contains a gallery and probes."""
    return (folder / "gallery").is_dir() or _find_tinyface(folder) is not None


def load_gallery(folder: Path) -> Gallery:
    """Load gallery/PERSON/..., probe/PERSON/... and optionally distractors/..., of aligned faces.

    Or TinyFace as released.

    TinyFace's lists of names require scipy.

    Returns:
        The identification set.

    Raises:
        InputError: If something is missing.
    """
    testing = _find_tinyface(folder)
    if testing is not None:
        gallery, probes = (_read_tinyface_list(testing, name) for name in _TINYFACE)
        distractors = images.list_images(testing / "Gallery_Distractor")
    else:
        gallery, probes = (_images_by_person(folder / name) for name in ("gallery", "probe"))
        distractors = images.list_images(folder / "distractors") if (folder / "distractors").is_dir() else []
    people = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in gallery + probes))}
    if not {name for name, _ in gallery} & {name for name, _ in probes}:
        raise InputError(f"{folder}: no probe shows a person of the gallery")
    return Gallery(
        name=folder.resolve().name,
        files=[path for _, path in gallery] + distractors + [path for _, path in probes],
        subjects=np.array(
            [people[name] for name, _ in gallery]
            + [UNKNOWN_SUBJECT] * len(distractors)
            + [people[name] for name, _ in probes],
            np.int64,
        ),
        gallery_size=len(gallery) + len(distractors),
    )


def _images_by_person(folder: Path) -> list[tuple[str, Path]]:
    """Return images and the names of their folders."""
    found = [(path.relative_to(folder).parts[0], path) for path in images.list_images(folder)]
    if loose := next((path for _, path in found if path.parent == folder), None):
        raise InputError(f"{loose}: is not in a person's folder; expected {folder.name}/PERSON/{loose.name}")
    return found


def _find_tinyface(folder: Path) -> Path | None:
    """Return TinyFace's folder of evaluation images."""
    for found in (folder, folder / "Testing_Set"):
        if (found / "Gallery_Match").is_dir():
            return found
    return None


def _read_tinyface_list(testing: Path, folder: str) -> list[tuple[str, Path]]:
    """Return images of TinyFace and their subjects."""
    file, names, numbers = _TINYFACE[folder]
    content = _load_mat(testing / file)
    if not {names, numbers} <= content.keys():
        raise InputError(f"{testing / file}: no {names} and {numbers} in it")
    flat = [str(it) for cell in content[names].reshape(-1) for it in np.asarray(cell).reshape(-1)]
    whom = [str(it) for it in content[numbers].reshape(-1)]
    if len(flat) != len(whom):
        raise InputError(f"{testing / file}: {len(flat)} {names} and {len(whom)} {numbers}; expected as many")
    return [(who, testing / folder / name) for who, name in zip(whom, flat, strict=True)]


def _load_mat(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(
            f"{path}: a MATLAB file requires scipy; install it with: pip install scipy"
        ) from None
    try:
        return dict(loadmat(path))
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(f"{path}: expected a MATLAB file: {format_error(error)[:100]}") from None
