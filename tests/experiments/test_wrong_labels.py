"""experiments/wrong_labels.py tabulates what has finished, and runs nothing of it again."""

import json
import shutil
from pathlib import Path

from helpers.calling import called_module

from partialfc.data import RecordDataset

ACCURACIES = {
    "as_it_is": (0.5, 0.7),
    "threshold_0.4": (0.6, 0.6),
    "three_sub-centers": (0.4, 0.5),
    "cleaned": (0.8, 0.9),
}


def test_finished_runs_are_tabulated(pack, tmp_path):
    for seed in (0, 1):
        flipped, cleaned = (tmp_path / str(seed) / name for name in ("flipped", "cleaned"))
        flip(pack, flipped)
        cleaned.mkdir()
        shutil.copy(flipped / "property", cleaned)
        (cleaned / "dropped.csv").write_text("key\n" + "".join(f"{key}\n" for key in range(1, 21)))
        for name, accuracies in ACCURACIES.items():
            folder = tmp_path / str(seed) / "runs" / name
            folder.mkdir(parents=True)
            scores = {"accuracy": accuracies[seed], "auc": 0.5}
            (folder / "summary.json").write_text(json.dumps({"verification": {"val": scores}}))
    report = tmp_path / "rows.json"
    found = called_module("experiments.wrong_labels", pack, tmp_path, "--seeds", "0", "1", "--json", report)
    _, _, first, *_, cleaned, of_0, _ = found.stdout.splitlines()
    assert first == "| as it is | 2 | 60.0 ± 14.1 |  | 0.500 |  |"
    assert "| +25.0 (+20.0 to +30.0) |" in cleaned
    right, given = RecordDataset(pack), RecordDataset(tmp_path / "0/flipped")
    wrong = sum(given.label(image) != right.label(image) for image in range(20))
    assert 0 < wrong < 20
    assert of_0 == f"seed 0: clean drops {wrong} of 34 wrong labels, and {20 - wrong} right ones"
    rows = json.loads(report.read_text())
    assert len(rows) == 8 and rows[3] == {
        "case": "cleaned",
        "seed": 0,
        "set": "val",
        "accuracy": 0.8,
        "auc": 0.5,
    }


def flip(pack: Path, out: Path) -> None:
    assert called_module("experiments.flip_labels", pack, out).returncode == 0


def test_a_pack_that_is_not_there_is_said_in_a_line(tmp_path):
    found = called_module("experiments.wrong_labels", tmp_path / "none", tmp_path / "out")
    assert (
        found.returncode == 2
        and found.stderr == f"error: {tmp_path}/none: no such folder; expected train.rec\n"
    )
