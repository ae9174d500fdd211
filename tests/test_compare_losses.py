"""tools/compare_losses.py runs its share of the cases, nothing twice, and tabulates all that have finished."""

import json
from pathlib import Path

import pytest
from calling import called_tool

from partialfc.config import load_config

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import compare_losses

    return compare_losses


def test_every_case_is_a_recipe(tool, tmp_path):
    for case in tool.CASES:
        load_config("faces_tiny", tool.case_overrides(tmp_path, case))


def test_a_share_is_run_and_all_are_tabulated(tool, tmp_path):
    """Of two runs one has finished: the other is of the second share, whose pack does not exist."""
    finished = tool.run_folder(tmp_path / "out", "cosface", 0)
    finished.mkdir(parents=True)
    scores = {"val": {"accuracy": 0.75, "auc": 0.8}}
    (finished / "summary.json").write_text(json.dumps({"verification": scores}))
    command = [TOOLS / "compare_losses.py", tmp_path / "none", tmp_path / "out"]
    command += ["--seeds", "0", "--only", "cosface", "--json", tmp_path / "rows.json"]
    count = sum("cosface" in case for case in tool.CASES)
    found = called_tool(*command, "--share", f"0/{count}")
    assert found.stdout.splitlines()[2:] == ["| cosface | 1 | 75.0 |  | 0.800 |  |"]
    row = {"case": "cosface", "seed": 0, "set": "val", "accuracy": 0.75, "auc": 0.8}
    assert json.loads((tmp_path / "rows.json").read_text()) == [row]
    (finished / "summary.json").unlink()  # it stands in the file
    again = called_tool(*command, "--share", f"{count - 1}/{count}")
    assert again.stdout == found.stdout
    other = called_tool(*command, "--share", f"0/{count}")
    assert other.returncode == 2 and "none: no such folder" in other.stderr
