"""How compact classes are: numbers of known pictures, and a picture of runs."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import config_of, trained

from partialfc.errors import InputError

TOOL = Path(__file__).parents[1] / "tools/draw_compactness.py"


def on_circle(degrees: list[float]) -> np.ndarray:
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_numbers_are_those_of_the_picture():
    measured = runpy.run_path(str(TOOL))["measured"]
    centers = on_circle([0, 90, 180])
    embeddings = on_circle([-5, 5, 88, 92, 150, 160, 20])
    labels = np.array([0, 0, 1, 1, 2, 2, 0])
    found = measured(embeddings, labels, centers)
    assert found.right == 1.0
    mean = np.degrees(np.angle(np.exp(1j * np.radians([-5, 5, 20])).mean()))
    own = np.abs(np.array([-5, 5, 20]) - mean).mean()
    assert found.within == pytest.approx((own + 2 + 5) / 3, abs=1e-3)
    assert found.between == pytest.approx(np.std([90 - mean, 65, 360 - 155 + mean]), abs=1e-3)
    assert measured(embeddings, labels[::-1].copy(), centers).right < 0.9
    with pytest.raises(InputError, match=r"embeddings of 3 components; wanted backbone\.embedding: 2"):
        measured(np.ones((2, 3), np.float32), np.zeros(2, np.int64), centers)


def test_runs_are_drawn_and_told(ranks, pack, tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        config = config_of(
            pack, tmp_path / f"runs/{seed}", backbone={"embedding": 2}, train={"length": 2 + seed}
        )
        ranks.run(1, trained, config)
    monkeypatch.setattr(sys, "argv", [str(TOOL), str(tmp_path / "out.png"), str(tmp_path / "runs")])
    runpy.run_path(str(TOOL), run_name="__main__")
    header, _, line = capsys.readouterr().out.splitlines()[-3:]
    assert header.startswith("| runs | collapsed |") and line.startswith("| runs, 2 | 2 | ")
    assert (tmp_path / "out.png").stat().st_size > 5_000
