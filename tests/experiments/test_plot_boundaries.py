"""The boundaries that are drawn are those of the formulas."""

import sys

import numpy as np
import pytest

from experiments import plot_boundaries
from partialfc.config import ArcFace, CosFace, ElasticArcFace

FIRST = np.linspace(0, 1, 9)


def test_boundaries_are_those_of_the_formulas():
    boundary = plot_boundaries.boundary
    np.testing.assert_allclose(boundary(ArcFace(), FIRST, 0.0), FIRST + 0.5)
    np.testing.assert_allclose(boundary(CosFace(), FIRST, 0.0), np.arccos(np.cos(FIRST) - 0.35))
    np.testing.assert_allclose(boundary(ElasticArcFace(), FIRST, -2.0), FIRST + 0.4)
    assert np.isnan(boundary(CosFace(margin=2.5), FIRST, 0.0)).all()
    low, _, high = plot_boundaries.quantiles(ElasticArcFace())
    assert high == -low == pytest.approx(1.96, abs=1e-3)
    assert plot_boundaries.quantiles(ArcFace()) == (0, 0, 0)


def test_the_figure_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plot_boundaries", str(tmp_path / "out.png")])
    plot_boundaries.main()
    assert (tmp_path / "out.png").stat().st_size > 10_000
