"""Photographs to aligned faces: the five points of a face, found by OpenCV's FaceDetectorYN, are brought to where all training
sets of the field have them.
"""

import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.images import Pixels
from partialfc.errors import InputError
from partialfc.runtime.exit_codes import one_line
from partialfc.runtime.files import atomic_write
from partialfc.runtime.progress import in_order, tracked

# [5] eyes, nose, corners of the mouth, left ones of the picture first: x + iy, in pixels
Points = NDArray[np.complex128]

# In 112 x 112 pixels, as ArcFace's training sets are aligned (insightface, face_align.py).
TEMPLATE: Points = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)
_TEMPLATE_SIZE = 112

_LARGEST = 640  # pixels of a photograph's longer side, as it is searched
_CLOSE = 320  # of the square around a face, in which its points are looked for again
_AROUND = 1.6  # that square's side, in sides of the face's box
_QUALITY = 95  # of JPEG
MISSING = "without_a_face.txt"


class Face(NamedTuple):
    """What a detector finds."""

    box: tuple[float, float, float, float]  # left, top, width, height
    points: Points


class Detector:
    """YuNet, or another network that FaceDetectorYN takes, from an ONNX file; InputError where it is none. Each thread has its
    own.

    threshold: the least score of a face, from 0 to 1.
    """

    def __init__(self, model: Path, *, threshold: float) -> None:
        self._model, self._threshold = model, threshold
        self._threads = threading.local()
        try:
            self._foremost(
                np.zeros((_CLOSE, _CLOSE, 3), np.uint8)
            )  # another network fails at its first image
        except cv2.error:
            raise InputError(f"{model}: no face detector that OpenCV's FaceDetectorYN takes") from None

    def face(self, photo: Pixels) -> Face | None:
        """The face that a photograph [H, W, 3] is of: large and near its middle; None where there is none.

        Its points are looked for once more close by, so that they do not depend on how large it is in the photograph.
        """
        shape = np.array(photo.shape[1::-1])
        scale = min(1.0, _LARGEST / shape.max())
        found = self._foremost(_resized(photo, np.maximum(1, np.round(shape * scale)).astype(int)))
        if found is None:
            return None
        left, top, width, height = (it / scale for it in found.box)
        side = _AROUND * max(width, height)
        corner = complex(left + width / 2 - side / 2, top + height / 2 - side / 2)
        zoom = _CLOSE / side
        again = self._foremost(_moved(photo, zoom, -zoom * corner, _CLOSE))
        points = found.points / scale if again is None else again.points / zoom + corner
        return Face((left, top, width, height), points)

    def _foremost(self, photo: Pixels) -> Face | None:
        """By area less twice the squared distance from the middle, as insightface chooses."""
        height, width = photo.shape[:2]
        detector = self._of_thread()
        detector.setInputSize((width, height))
        _, found = detector.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        faces = [] if found is None else [_face(row) for row in found]
        middle = complex(width, height) / 2
        return max(faces, key=partial(_weight, middle=middle), default=None)

    def _of_thread(self) -> Any:
        if not hasattr(self._threads, "detector"):
            size = _CLOSE, _CLOSE  # set anew for each image
            self._threads.detector = cv2.FaceDetectorYN.create(str(self._model), "", size, self._threshold)
        return self._threads.detector


def _face(row: NDArray[np.float32]) -> Face:
    left, top, width, height = (float(it) for it in row[:4])
    return Face((left, top, width, height), row[4:14:2].astype(float) + 1j * row[5:14:2])


def _weight(face: Face, middle: complex) -> float:
    left, top, width, height = face.box
    offset = abs(complex(left + width / 2, top + height / 2) - middle)
    return float(width * height - 2 * offset**2)


def similarity(points: Points, target: Points) -> tuple[complex, complex]:
    """(a, b) with a z + b nearest to `target`, in least squares: rotation and scale, and a shift. (A line's slope and
    intercept, in complex numbers.)
    """
    middle, target_middle = points.mean(), target.mean()
    apart = points - middle
    slope = complex(np.vdot(apart, target - target_middle) / np.vdot(apart, apart).real)
    return slope, complex(target_middle - slope * middle)


def aligned(photo: Pixels, points: Points, size: int = _TEMPLATE_SIZE) -> Pixels:
    """The face [size, size, 3] whose points in `photo` are those; black where the photograph ends."""
    slope, shift = similarity(points, TEMPLATE * (size / _TEMPLATE_SIZE))
    return _moved(photo, slope, shift, size)


def _moved(photo: Pixels, slope: complex, shift: complex, size: int) -> Pixels:
    """[size, size, 3], in which what was at z is at slope z + shift. A photograph that shrinks is made smaller before, by
    areas: else it would be sampled at single pixels.
    """
    matrix = np.array([[slope.real, -slope.imag, shift.real], [slope.imag, slope.real, shift.imag]])
    if abs(slope) < 0.5:
        shape = np.array(photo.shape[1::-1])
        smaller = np.maximum(1, np.round(shape * 2 * abs(slope))).astype(int)
        photo = _resized(photo, smaller)
        matrix[:, 2] += matrix[:, :2] @ (0.5 * shape / smaller - 0.5)  # a pixel's middle is at .5 of it
        matrix[:, :2] *= shape / smaller
    return np.asarray(cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


def _resized(photo: Pixels, shape: NDArray[np.integer]) -> Pixels:
    width, height = shape.tolist()
    return np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


class Outcome(NamedTuple):
    """What came of a folder of photographs."""

    photographs: int
    faces: int
    missing: list[str]  # photographs without a face, or that cannot be read, and why


def align(photos: Path, out: Path, detector: Detector, *, size: int, progress: bool = False) -> Outcome:
    """Write the face of each photograph below `photos` as a JPEG of the same place below `out`; and a listing of those without.

    What is there already stays as it is, so that an interrupted call can be repeated. InputError where there are no
    photographs, two would be written to one place, or `out` lies within `photos`.
    """
    places = _places(photos, out)

    def done(path: Path) -> str | None:
        """What keeps it from being aligned, if anything."""
        place = places[path]
        if place.exists():
            return None
        try:
            photo = images.read(path)
        except (InputError, OSError) as error:
            return one_line(error).removeprefix(f"{path}: ")
        face = detector.face(photo)
        if face is None:
            return "no face"
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as temporary:
            temporary.write_bytes(images.encode_jpeg(aligned(photo, face.points, size), _QUALITY))
        return None

    missing = []
    problems = zip(places, in_order(done, places), strict=True)
    for path, problem in tracked(problems, "aligning", shown=progress, total=len(places)):
        if problem is not None:
            missing.append(f"{path.relative_to(photos)}: {problem}")
    _list_missing(out / MISSING, missing)
    return Outcome(len(places), len(places) - len(missing), missing)


def _list_missing(path: Path, missing: list[str]) -> None:
    if not missing:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{it}\n" for it in missing), encoding="utf-8")


def _places(photos: Path, out: Path) -> dict[Path, Path]:
    """Of each photograph, where its face is written."""
    found = images.below(photos)
    if out.resolve().is_relative_to(photos.resolve()):
        raise InputError(f"{out}: lies within {photos}; wanted another folder, or faces would be photographs")
    places = {path: (out / path.relative_to(photos)).with_suffix(".jpg") for path in found}
    taken: dict[Path, Path] = {}
    for path, place in places.items():
        if place in taken:
            raise InputError(f"{taken[place]} and {path}: both would be {place}")
        taken[place] = path
    return places
