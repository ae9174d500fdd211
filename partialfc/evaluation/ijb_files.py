"""Files of IJB-B and IJB-C: images with their templates, and templates with their subjects."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data.alignment import FacePoints
from partialfc.errors import InputError

SUFFIX = "_face_tid_mid.txt"
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_MAX_LISTED = 20  # templates with unusable images


@dataclass(frozen=True)
class TemplateImages:
    """Images of the set, in the order of its files."""

    files: list[str]  # `[N]`
    points: list[FacePoints]  # `[N]`, of the face
    scores: NDArray[np.float64]  # `[N]`, of the detector
    templates: NDArray[np.int64]  # `[N]`, ids
    media: NDArray[np.int64]  # `[N]`

    def select(self, chosen: NDArray[np.bool_]) -> "TemplateImages":
        """Return the images of a mask `[N]`."""
        indices = np.flatnonzero(chosen)
        return TemplateImages(
            [self.files[it] for it in indices],
            [self.points[it] for it in indices],
            self.scores[chosen],
            self.templates[chosen],
            self.media[chosen],
        )

    def weights(self) -> NDArray[np.float32]:
        """Return the detector score of each image / number of images of the same media in the template."""
        together = np.stack([self.templates, self.media], axis=1)
        _, inverse, counts = np.unique(together, axis=0, return_inverse=True, return_counts=True)
        return (self.scores / counts[inverse.reshape(-1)]).astype(np.float32)


def read_images(
    folder: Path, name: str, *, skip_unusable: bool
) -> tuple[TemplateImages, NDArray[np.int64], list[str]]:
    """Return the usable images of a set, all template ids, and a line for each template with unusable images.

    An image is unusable if its five points are equal, and so are all images of a template if their scores are 0: the
    template would be zero.

    Args:
        folder: Folder of the set.
        name: Prefix of its file names.
        skip_unusable: Whether to leave them out.

    Raises:
        InputError: If a file is invalid, or images are unusable and not left out.
    """
    meta = folder / "meta"
    files, points, scores = _read_face_points(meta / f"{name}_name_5pts_score.txt")
    templates, media = _read_templates(meta / f"{name}{SUFFIX}", files)
    found = TemplateImages(files, points, scores, templates, media)
    unusable, lines = _find_unusable(found)
    if lines and not skip_unusable:
        raise InputError(
            f"{folder}: {len(lines)} templates have unusable images: {join_some(lines)}; set "
            "evaluation.skip_unusable, or --skip-unusable, to leave them out"
        )
    if unusable.all():
        raise InputError(f"{folder}: no usable image")
    return found.select(~unusable), np.unique(templates), lines


def join_some(lines: list[str]) -> str:
    """Return the first lines, joined, and the number of the others."""
    more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return "; ".join([*lines[:_MAX_LISTED], *more])


def _find_unusable(images: TemplateImages) -> tuple[NDArray[np.bool_], list[str]]:
    """Return a mask `[N]` of unusable images, and a line for each template that has some."""
    equal_points = np.array([len(set(it.tolist())) == 1 for it in images.points])
    ids, inverse = np.unique(images.templates, return_inverse=True)
    sums = np.bincount(inverse, np.where(equal_points, 0, np.abs(images.scores)))
    zero = sums[inverse] == 0
    unusable = equal_points | zero
    lines = [
        f"template {ids[it]}: {', '.join(images.files[place] for place in np.flatnonzero(equal_points & (inverse == it)))}"
        " with five equal points"
        if equal_points[inverse == it].any()
        else f"template {ids[it]}: only detector scores of 0"
        for it in np.unique(inverse[unusable])
    ]
    return unusable, lines


def _read_face_points(path: Path) -> tuple[list[str], list[FacePoints], NDArray[np.float64]]:
    """Return names `[N]`, five points `[N]` and scores `[N]`."""
    files, points, scores = [], [], []
    for place, fields in _iter_fields(path, 12):
        try:
            values = np.array([float(it) for it in fields[1:]])
        except ValueError:
            raise InputError(f"{path}: line {place}: expected 11 numbers after {fields[0]}") from None
        if not np.isfinite(values).all():
            raise InputError(f"{path}: line {place}: expected finite numbers after {fields[0]}")
        files.append(fields[0])
        points.append(values[:10:2] + 1j * values[1:10:2])
        scores.append(values[10])
    return files, points, np.array(scores)


def _read_templates(path: Path, files: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return template and media `[N]` of each image.

    Raises:
        InputError: If the images are not `files`, in the same order.
    """
    numbers = []
    for (place, fields), expected in zip(_iter_fields(path, 3), [*files, None], strict=False):
        if fields[0] != expected:
            found = expected or f"{len(files)} images"
            raise InputError(f"{path}: line {place}: {fields[0]}; the list of points has {found} there")
        if not all(_INTEGER.fullmatch(it) for it in fields[1:]):
            raise InputError(f"{path}: line {place}: {' '.join(fields)}; expected name template media")
        numbers.append((int(fields[1]), int(fields[2])))
    if len(numbers) != len(files):
        raise InputError(f"{path}: {len(numbers)} images; the list of points has {len(files)}")
    columns = np.array(numbers, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _iter_fields(path: Path, fields: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:  # names may contain any bytes
        for place, line in enumerate(file, 1):
            found = line.split()
            if len(found) != fields:
                raise InputError(f"{path}: line {place}: {len(found)} fields; expected {fields}")
            yield place, found


def read_int_columns(path: Path, columns: int) -> list[NDArray[np.int64]]:
    """Read integer columns; a file may have tens of millions of rows."""
    with warnings.catch_warnings():
        # numpy's only report of a field that is not a number.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            found = np.fromfile(path, np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            raise InputError(f"{path}: expected integers only") from None
    if not found.size or found.size % columns:
        raise InputError(f"{path}: {found.size} numbers; expected {columns} in each line")
    return [found[column::columns] for column in range(columns)]


def read_subjects(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids `[n]` of the templates of a file, and their subjects `[n]`.

    A template of several images has several lines.

    Raises:
        InputError: If the file is invalid.
    """
    found: dict[int, int] = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for place, line in enumerate(file, 1):
            fields = [it.strip() for it in line.split(",")[:2]]
            if place == 1 and not _INTEGER.fullmatch(fields[0]):
                continue  # header
            if len(fields) < 2 or not all(_INTEGER.fullmatch(it) for it in fields):
                raise InputError(f"{path}: line {place}: expected TEMPLATE_ID,SUBJECT_ID,...")
            template, subject = map(int, fields)
            if found.setdefault(template, subject) != subject:
                raise InputError(f"{path}: line {place}: template {template} of a second subject, {subject}")
    if not found:
        raise InputError(f"{path}: no templates")
    numbers, subjects = np.array(list(found.items()), np.int64).T
    return numbers, subjects
