"""experiments/losses.py runs its share of the cases, nothing twice, and tabulates all that have finished."""

import json

from helpers.calling import called_module

from experiments import losses
from partialfc.config import load_config


def test_every_case_is_a_recipe(tmp_path):
    for case in losses.CASES:
        load_config("faces_tiny", losses.case_overrides(tmp_path, case))


def test_a_share_is_run_and_all_are_tabulated(tmp_path):
    """Of two runs one has finished: the other is of the second share, whose pack does not exist."""
    finished = losses.run_folder(tmp_path / "out", "cosface", 0)
    finished.mkdir(parents=True)
    scores = {"val": {"accuracy": 0.75, "auc": 0.8}}
    (finished / "summary.json").write_text(json.dumps({"verification": scores}))
    command = ["experiments.losses", tmp_path / "none", tmp_path / "out"]
    command += ["--seeds", "0", "--only", "cosface", "--json", tmp_path / "rows.json"]
    count = sum("cosface" in case for case in losses.CASES)
    found = called_module(*command, "--share", f"0/{count}")
    assert found.stdout.splitlines()[2:] == ["| cosface | 1 | 75.0 |  | 0.800 |  |"]
    row = {"case": "cosface", "seed": 0, "set": "val", "accuracy": 0.75, "auc": 0.8}
    assert json.loads((tmp_path / "rows.json").read_text()) == [row]
    (finished / "summary.json").unlink()  # it stands in the file
    again = called_module(*command, "--share", f"{count - 1}/{count}")
    assert again.stdout == found.stdout
    other = called_module(*command, "--share", f"0/{count}")
    assert other.returncode == 2 and "none: no such folder" in other.stderr
