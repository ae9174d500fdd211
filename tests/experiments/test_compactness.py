"""How compact classes are: numbers of known pictures, the people that are taken, a table and a picture of runs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.faces import face
from helpers.runs import config_of, trained

from experiments import compactness
from partialfc.config import load_config
from partialfc.data import RecordDataset
from partialfc.errors import InputError


def on_circle(degrees: list[float]) -> np.ndarray:
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_numbers_are_those_of_the_picture():
    centers = on_circle([0, 90, 180])
    embeddings = on_circle([-5, 5, 88, 92, 150, 160, 20])
    labels = np.array([0, 0, 1, 1, 2, 2, 0])
    found = compactness.measure(embeddings, labels, centers)
    assert found.accuracy == 1.0 and not found.collapsed
    mean = np.degrees(np.angle(np.exp(1j * np.radians([-5, 5, 20])).mean()))
    own = np.abs(np.array([-5, 5, 20]) - mean).mean()
    assert found.mean_class_angle == pytest.approx((own + 2 + 5) / 3, abs=1e-3)
    assert found.neighbor_angle_std == pytest.approx(np.std([90 - mean, 65, 360 - 155 + mean]), abs=1e-3)
    assert compactness.measure(embeddings, labels[::-1].copy(), centers).collapsed


def test_collapsed_runs_are_counted_and_left_out_of_the_angles():
    def run(right, within, between):
        return compactness.RunMeasurement(on_circle([0]), np.zeros(1, np.int64), right, within, between)

    runs = {
        "a": {0: run(1.0, 2.0, 10.0), 1: run(0.5, 90.0, 90.0), 2: run(1.0, 4.0, 20.0)},
        "b": {0: run(0.98, 1.0, 12.0), 1: run(1.0, 1.5, 15.0), 2: run(0.9, 80.0, 80.0)},
    }
    assert compactness.format_table(runs)[2:] == [
        "| a | 3 | 1 | 83.3% | 3.0 (2.0 to 4.0) |  | 15.0 (10.0 to 20.0) |  |",
        "| b | 3 | 1 | 96.0% | 1.2 (1.0 to 1.5) | -1.0 | 13.5 (12.0 to 15.0) | +2.0 |",
    ]


def write_faces(folder: Path, counts: list[int]) -> None:
    for person, count in enumerate(counts):
        (folder / f"{person}").mkdir(parents=True)
        for image in range(count):
            (folder / f"{person}/{image}.jpg").write_bytes(face(person, image))


def test_the_people_with_most_images_are_taken_as_many_of_each(tmp_path):
    write_faces(tmp_path / "faces", [3, 1, 4, 3, 5, 3, 3, 3, 2, 3, 6])
    pack = compactness.ensure_pack(tmp_path / "faces", tmp_path / "out")
    dataset = RecordDataset(pack)
    assert np.bincount(dataset.labels()).tolist() == [3] * 8
    assert [it.name for it in (tmp_path / "out").iterdir()] == ["pack"]
    assert compactness.ensure_pack(tmp_path / "faces", tmp_path / "out") == pack
    write_faces(tmp_path / "others", [3] * 8)
    with pytest.raises(InputError, match=r"pack: not of the people of .*others; expected another OUT"):
        compactness.ensure_pack(tmp_path / "others", tmp_path / "out")
    for case in compactness.CASES:
        load_config("faces_tiny", compactness.case_overrides(pack, case))


def test_runs_are_drawn_and_told(ranks, pack, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for case in compactness.CASES:
        config = config_of(
            pack, compactness.run_folder(out, case, 1), backbone={"embedding_size": 2}, train={"length": 2}
        )
        ranks.run(1, trained, config)
    write_faces(tmp_path / "faces", [1] * 8)
    arguments = [str(tmp_path / "faces"), str(out), "--seeds", "1", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    compactness.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:3] for line in lines[-3:]] == [
        [f"| {case}", "1", "1"] for case in compactness.CASES
    ]
    assert [row["seed"] for row in json.loads((tmp_path / "rows.json").read_text())] == [1, 1, 1]
    monkeypatch.setattr(sys, "argv", ["tool", *arguments, "--picture", str(tmp_path / "it.png")])
    with pytest.raises(SystemExit, match="no seed with which every loss"):
        compactness.main()
    monkeypatch.setattr(compactness, "_MIN_ACCURACY", 0.0)
    compactness.main()
    assert (tmp_path / "it.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("people", "share", "message"),
    [
        (0, "0/1", "faces: contains no folders"),
        (7, "0/1", "faces: 7 identities; expected 8"),
        (8, "1/1", "1/1: expected I/N"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, people, share, message):
    (tmp_path / "faces").mkdir()
    write_faces(tmp_path / "faces", [1] * people)
    monkeypatch.setattr(
        sys, "argv", ["tool", str(tmp_path / "faces"), str(tmp_path / "out"), "--share", share]
    )
    with pytest.raises(InputError, match=message):
        compactness.main()
