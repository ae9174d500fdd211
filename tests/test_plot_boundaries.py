"""The boundaries that are drawn are those of the formulas."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from partialfc.config import ArcFace, CosFace, ElasticArcFace

TOOL = Path(__file__).parents[1] / "tools/plot_boundaries.py"
FIRST = np.linspace(0, 1, 9)


def test_boundaries_are_those_of_the_formulas():
    tool = runpy.run_path(str(TOOL))
    boundary = tool["boundary"]
    np.testing.assert_allclose(boundary(ArcFace(), FIRST, 0.0), FIRST + 0.5)
    np.testing.assert_allclose(boundary(CosFace(), FIRST, 0.0), np.arccos(np.cos(FIRST) - 0.35))
    np.testing.assert_allclose(boundary(ElasticArcFace(), FIRST, -2.0), FIRST + 0.4)
    assert np.isnan(boundary(CosFace(margin=2.5), FIRST, 0.0)).all()
    low, _, high = tool["quantiles"](ElasticArcFace())
    assert high == -low == pytest.approx(1.96, abs=1e-3)
    assert tool["quantiles"](ArcFace()) == (0, 0, 0)


def test_the_figure_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(TOOL), str(tmp_path / "out.png")])
    runpy.run_path(str(TOOL), run_name="__main__")
    assert (tmp_path / "out.png").stat().st_size > 10_000
