"""Alignment of photos: detection by OpenCV's FaceDetectorYN and a similarity transform to the standard five points."""

import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import atomic_write
from partialfc.runtime.progress import map_in_threads, progress_bar

# `[5]` eyes, nose, mouth corners; those on the left of the image first: x + iy, in pixels
FacePoints = NDArray[np.complex128]

# Target points for 112 x 112 pixels, as in ArcFace's training sets (insightface, face_align.py).
TEMPLATE: FacePoints = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)
_TEMPLATE_SIZE = 112

_MAX_SEARCH_SIZE = 640  # pixels of the longer side of a photo for the search
_REFINE_SIZE = 320  # pixels of the crop around a face for the second detection
_REFINE_MARGIN = 1.6  # side of that crop, relative to the face box
_JPEG_QUALITY = 95  # JPEG quality
NO_FACE_FILE = "no_face.txt"


class DetectedFace(NamedTuple):
    """Detected face."""

    box: tuple[float, float, float, float]  # left, top, width, height
    points: FacePoints


class Detector:
    """YuNet, or another network supported by FaceDetectorYN, from an ONNX file. Each thread has its own detector.

    Args:
        path: ONNX file.
        threshold: Minimum score of a face, from 0 to 1.

    Raises:
        InputError: If the file is not such a network.
    """

    def __init__(self, model: Path, *, threshold: float) -> None:
        self._model, self._threshold = model, threshold
        self._threads = threading.local()
        try:
            # Another network fails at its first image.
            self._main_face(np.zeros((_REFINE_SIZE, _REFINE_SIZE, 3), np.uint8))
        except cv2.error:
            raise InputError(f"{model}: expected a face detector for OpenCV's FaceDetectorYN") from None

    def detect(self, photo: ImageArray) -> DetectedFace | None:
        """Return the main face of a photo `[H, W, 3]`: large and central; None if no face is found.

        A second detection in a crop makes the points independent of the size of the face in the photo.
        """
        shape = np.array(photo.shape[1::-1])
        scale = min(1.0, _MAX_SEARCH_SIZE / shape.max())
        found = self._main_face(_resize(photo, np.maximum(1, np.round(shape * scale)).astype(int)))
        if found is None:
            return None
        left, top, width, height = (it / scale for it in found.box)
        side = _REFINE_MARGIN * max(width, height)
        corner = complex(left + width / 2 - side / 2, top + height / 2 - side / 2)
        zoom = _REFINE_SIZE / side
        again = self._main_face(_warp(photo, zoom, -zoom * corner, _REFINE_SIZE))
        points = found.points / scale if again is None else again.points / zoom + corner
        return DetectedFace((left, top, width, height), points)

    def _main_face(self, photo: ImageArray) -> DetectedFace | None:
        """Return the face with the largest area minus twice the squared distance from the center, as in insightface."""
        height, width = photo.shape[:2]
        detector = self._thread_detector()
        detector.setInputSize((width, height))
        _, found = detector.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        faces = [] if found is None else [_parse_detection(row) for row in found]
        middle = complex(width, height) / 2
        return max(faces, key=partial(_face_score, image_center=middle), default=None)

    def _thread_detector(self) -> Any:
        if not hasattr(self._threads, "detector"):
            size = _REFINE_SIZE, _REFINE_SIZE  # set for each image
            self._threads.detector = cv2.FaceDetectorYN.create(str(self._model), "", size, self._threshold)
        return self._threads.detector


def _parse_detection(row: NDArray[np.float32]) -> DetectedFace:
    left, top, width, height = (float(it) for it in row[:4])
    return DetectedFace((left, top, width, height), row[4:14:2].astype(float) + 1j * row[5:14:2])


def _face_score(face: DetectedFace, image_center: complex) -> float:
    left, top, width, height = face.box
    offset = abs(complex(left + width / 2, top + height / 2) - image_center)
    return float(width * height - 2 * offset**2)


def fit_similarity(points: FacePoints, target: FacePoints) -> tuple[complex, complex]:
    """Return the (a, b) that minimize |a z + b - target|^2: rotation and scale, and translation.

    This is linear regression with complex numbers.
    """
    middle, target_middle = points.mean(), target.mean()
    apart = points - middle
    slope = complex(np.vdot(apart, target - target_middle) / np.vdot(apart, apart).real)
    return slope, complex(target_middle - slope * middle)


def align_face(photo: ImageArray, points: FacePoints, size: int = _TEMPLATE_SIZE) -> ImageArray:
    """Return the face `[size, size, 3]` with the given points in `photo`; black outside of the photo."""
    slope, shift = fit_similarity(points, TEMPLATE * (size / _TEMPLATE_SIZE))
    return _warp(photo, slope, shift, size)


def _warp(photo: ImageArray, slope: complex, shift: complex, size: int) -> ImageArray:
    """Return an image `[size, size, 3]` whose pixel slope * z + shift shows pixel z of the photo.

    A photo that shrinks is first reduced by area averaging, to avoid aliasing.
    """
    matrix = np.array([[slope.real, -slope.imag, shift.real], [slope.imag, slope.real, shift.imag]])
    if abs(slope) < 0.5:
        shape = np.array(photo.shape[1::-1])
        smaller = np.maximum(1, np.round(shape * 2 * abs(slope))).astype(int)
        photo = _resize(photo, smaller)
        matrix[:, 2] += matrix[:, :2] @ (0.5 * shape / smaller - 0.5)  # pixel centers are at .5
        matrix[:, :2] *= shape / smaller
    return np.asarray(cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


def _resize(photo: ImageArray, shape: NDArray[np.integer]) -> ImageArray:
    width, height = shape.tolist()
    return np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


class AlignmentResult(NamedTuple):
    """Result of aligning a folder of photos."""

    num_photos: int
    num_faces: int
    missing: list[str]  # photos without a face or unreadable, with the reason


def align_folder(
    photo_folder: Path, out_folder: Path, detector: Detector, *, size: int, progress: bool = False
) -> AlignmentResult:
    """Write the face of each photo as a JPEG to the same relative path below `out_folder`, and list the failures.

    Existing faces are not rewritten; rerun the same command to resume.

    Args:
        photo_folder: Folder of photos.
        out_folder: Folder for the faces.
        detector: Face detector.
        size: Height and width of the faces in pixels.
        progress: Whether to show a progress bar.

    Returns:
        Numbers of photos and faces, and the failures.

    Raises:
        InputError: If there are no photos, if two have the same output path, or if `out_folder` is inside
            `photo_folder`.
    """
    places = _output_paths(photo_folder, out_folder)

    def done(path: Path) -> str | None:
        """Align one photo; return the reason if it fails."""
        place = places[path]
        if place.exists():
            return None
        try:
            photo = images.read(path)
        except (InputError, OSError) as error:
            return format_error(error).removeprefix(f"{path}: ")
        face = detector.detect(photo)
        if face is None:
            return "no face"
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as temporary:
            temporary.write_bytes(images.encode_jpeg(align_face(photo, face.points, size), _JPEG_QUALITY))
        return None

    missing = []
    problems = zip(places, map_in_threads(done, places), strict=True)
    for path, problem in progress_bar(problems, "aligning", enabled=progress, total=len(places)):
        if problem is not None:
            missing.append(f"{path.relative_to(photo_folder)}: {problem}")
    _write_no_face_list(out_folder / NO_FACE_FILE, missing)
    return AlignmentResult(len(places), len(places) - len(missing), missing)


def _write_no_face_list(path: Path, missing: list[str]) -> None:
    if not missing:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{it}\n" for it in missing), encoding="utf-8")


def _output_paths(photos: Path, out: Path) -> dict[Path, Path]:
    """Return the output path of each photo."""
    found = images.list_images(photos)
    if out.resolve().is_relative_to(photos.resolve()):
        raise InputError(f"{out}: is inside {photos}; choose another folder")
    places = {path: (out / path.relative_to(photos)).with_suffix(".jpg") for path in found}
    taken: dict[Path, Path] = {}
    for path, place in places.items():
        if place in taken:
            raise InputError(f"{taken[place]} and {path}: have the same output path {place}")
        taken[place] = path
    return places
