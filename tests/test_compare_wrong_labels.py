"""tools/compare_wrong_labels.py tabulates what has finished, and runs nothing of it again."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools/compare_wrong_labels.py"
ACCURACIES = {
    "as_it_is": (0.5, 0.7),
    "threshold_0.4": (0.6, 0.6),
    "three_sub-centres": (0.4, 0.5),
    "cleaned": (0.8, 0.9),
}


def test_finished_runs_are_tabulated(tmp_path):
    for seed in (0, 1):
        for pack in ("flipped", "cleaned"):
            (tmp_path / str(seed) / pack).mkdir(parents=True)
            (tmp_path / str(seed) / pack / "property").write_text("2,112,112")
        for name, accuracies in ACCURACIES.items():
            folder = tmp_path / str(seed) / "runs" / name
            folder.mkdir(parents=True)
            scores = {"accuracy": accuracies[seed], "auc": 0.5}
            (folder / "summary.json").write_text(json.dumps({"verification": {"val": scores}}))
    report = tmp_path / "rows.json"
    command = [sys.executable, TOOL, "no_pack", tmp_path, "--seeds", "0", "1", "--json", report]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[0].split() == [
        "as",
        "it",
        "is",
        "60.00",
        "+-",
        "14.14",
        "%",
        "50.0",
        "70.0",
    ]
    rows = json.loads(report.read_text())
    assert len(rows) == 8 and rows[3] == {
        "case": "cleaned",
        "seed": 0,
        "set": "val",
        "accuracy": 0.8,
        "auc": 0.5,
    }
