"""Photographs to aligned faces: the transform against numpy's least squares, faces in drawn photographs, whole folders."""

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers.detector import MAGENTA, write_detector
from onnx import TensorProto, helper

from partialfc.data import images
from partialfc.data.alignment import (
    NO_FACE_FILE,
    TEMPLATE,
    Detector,
    align_face,
    align_folder,
    fit_similarity,
)
from partialfc.errors import InputError

PHOTOGRAPHS = os.environ.get("PARTIALFC_PHOTOGRAPHS")  # a folder with points.csv and yunet.onnx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "detector.onnx"
    write_detector(path)
    return path


def photograph(*squares: tuple[int, int], size: tuple[int, int] = (480, 320)) -> images.ImageArray:
    """Gray, with magenta squares of 64 x 64 pixels at [left, top]."""
    photo = np.full((size[1], size[0], 3), 128, np.uint8)
    for left, top in squares:
        photo[top : top + 64, left : left + 64] = MAGENTA
    return photo


def test_similarity_is_numpys_least_squares():
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = generator.normal(size=5) * 40 + 1j * generator.normal(size=5) * 40 + 100
        slope, shift = fit_similarity(points, TEMPLATE)
        rows = [[it.real, -it.imag, 1, 0] for it in points] + [[it.imag, it.real, 0, 1] for it in points]
        expected = np.linalg.lstsq(np.array(rows), np.concatenate([TEMPLATE.real, TEMPLATE.imag]))[0]
        np.testing.assert_allclose([slope.real, slope.imag, shift.real, shift.imag], expected, rtol=1e-9)
        exact = fit_similarity(points, (2 - 3j) * points + 5j)
        np.testing.assert_allclose(exact, (2 - 3j, 5j), atol=1e-9)


@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("scale", [0.7, 1.0, 3.0, 9.0])
def test_points_come_to_those_of_the_template(scale, size):
    """Dots drawn where the points of a turned face of any size are, whose centers of gravity are measured."""
    photo = np.zeros((1400, 1400, 3), np.uint8)
    points = scale * np.exp(0.3j) * (TEMPLATE - TEMPLATE.mean()) + 700 + 690j
    for number, point in enumerate(points):
        canvas = np.zeros(photo.shape[:2], np.uint8)
        center = round(point.real * 16), round(point.imag * 16)
        cv2.circle(canvas, center, round(3 * scale * 16), 255, cv2.FILLED, cv2.LINE_AA, shift=4)
        photo[..., number % 3] = np.maximum(photo[..., number % 3], canvas)
    face = align_face(photo, points, size)
    assert face.shape == (size, size, 3)
    for number, expected in enumerate(TEMPLATE * (size / 112)):
        near = face[..., number % 3].astype(float)
        rows, columns = np.mgrid[:size, :size]
        near[np.abs(columns + 1j * rows - expected) > size / 14] = 0
        found = (near * (columns + 1j * rows)).sum() / near.sum()
        assert abs(found - expected) < 0.2 * size / 112


def test_the_face_nearest_to_the_middle_is_taken(model):
    detector = Detector(model, threshold=0.9)
    face = detector.detect(photograph((32, 32), (224, 128)))
    assert abs(face.points.mean() - (256 + 160j)) < 20
    assert detector.detect(photograph()) is None


def test_a_large_photograph_is_searched_as_a_small_one(model):
    small = photograph((224, 128))
    large = cv2.resize(small, None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST)
    detector = Detector(model, threshold=0.9)
    middle = detector.detect(large).points.mean() / 6
    assert abs(middle - (256 + 160j)) < 40


def test_what_is_no_detector_is_refused(tmp_path):
    (tmp_path / "none.onnx").write_bytes(b"nothing")
    given = [
        helper.make_tensor_value_info(it, TensorProto.FLOAT, [1, 3, 640, 640]) for it in ("input", "out")
    ]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["out"])], "other", given[:1], given[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "other.onnx",
    )
    for name in ("none.onnx", "missing.onnx", "other.onnx"):
        with pytest.raises(InputError, match=f"{name}: expected a face detector for OpenCV's FaceDetectorYN"):
            Detector(tmp_path / name, threshold=0.9)


def test_a_folder_keeps_its_structure_and_goes_on_where_it_was(model, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "faces"
    for name, squares in (("Ann/1.jpg", [(224, 128)]), ("Ann/2.PNG", [(200, 100)]), ("Ben/old/1.jpg", [])):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        images.write((photos / name).with_suffix(Path(name).suffix.lower()), photograph(*squares))
    (photos / "Ann/2.png").rename(photos / "Ann/2.PNG")
    (photos / "Ben/broken.jpg").write_bytes(b"no image")
    (photos / "Ben/folder.jpg").mkdir()
    detector = Detector(model, threshold=0.9)
    found = align_folder(photos, out, detector, size=112)
    assert (found.num_photos, found.num_faces) == (5, 2)
    assert found.missing == [
        "Ben/broken.jpg: 8 bytes; expected an image that OpenCV can read",
        "Ben/folder.jpg: expected a file, found a folder",
        "Ben/old/1.jpg: no face",
    ]
    assert (out / NO_FACE_FILE).read_text().splitlines() == found.missing
    faces = sorted(out.rglob("*.jpg"))
    assert [str(it.relative_to(out)) for it in faces] == ["Ann/1.jpg", "Ann/2.jpg"]
    assert all(images.read(it).shape == (112, 112, 3) for it in faces)

    before = faces[0].stat().st_mtime_ns
    faces[1].unlink()
    (
        (photos / "Ben/folder.jpg").rmdir(),
        (photos / "Ben/broken.jpg").unlink(),
        (photos / "Ben/old/1.jpg").unlink(),
    )
    assert align_folder(photos, out, detector, size=112).missing == []
    assert faces[0].stat().st_mtime_ns == before and faces[1].exists() and not (out / NO_FACE_FILE).exists()


def test_photographs_that_would_be_one_face_are_told(model, tmp_path):
    for name in ("a.jpg", "a.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        images.write(tmp_path / "photos" / name, photograph((224, 128)))
    detector = Detector(model, threshold=0.9)
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png: have the same output path .*a\.jpg"):
        align_folder(tmp_path / "photos", tmp_path / "faces", detector, size=112)
    with pytest.raises(InputError, match=r"faces: is inside .*photos; choose another folder"):
        align_folder(tmp_path / "photos", tmp_path / "photos/faces", detector, size=112)


def test_a_folder_without_photographs_is_told(model, tmp_path):
    detector = Detector(model, threshold=0.9)
    for folder, message in (
        (tmp_path, "contains no images; expected .bmp, .jpeg"),
        (tmp_path / "none", "no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            align_folder(folder, tmp_path / "faces", detector, size=112)


@pytest.mark.skipif(PHOTOGRAPHS is None, reason="PARTIALFC_PHOTOGRAPHS names no folder of photographs")
def test_in_real_photographs_it_is_the_face_that_was_meant():
    """No point is further from another reading's than a tenth of the face, and there is no bias."""
    folder = Path(str(PHOTOGRAPHS))
    detector = Detector(folder / "yunet.onnx", threshold=0.6)
    apart = []
    with open(folder / "points.csv", newline="") as listing:
        for row in csv.DictReader(listing):
            expected = np.array([complex(float(row[f"x{it}"]), float(row[f"y{it}"])) for it in range(1, 6)])
            face = detector.detect(images.read(folder / row["photo"]))
            slope, _ = fit_similarity(expected, TEMPLATE)
            apart.append((face.points - expected) * abs(slope))
    assert np.abs(apart).max() < 11.2
    assert np.abs(np.mean(apart, axis=0)).max() < 1
