"""Harder versions of a verification set: the same pairs, of which every second image is worse."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from faces import write_pairs

from partialfc.evaluation.pairs import load_pairs

TOOL = str(Path(__file__).parents[1] / "tools/degrade_pairs.py")


def test_every_second_image_is_worse(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "a.bin", 20, 112)
    monkeypatch.setattr(sys, "argv", [TOOL, str(tmp_path / "a.bin"), str(tmp_path / "out")])
    runpy.run_path(TOOL, run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 2
    before = load_pairs(tmp_path / "a.bin")
    sharp = detail(before.pixels(1, 112))
    for kind, most in (("small", 0.5), ("gray", 1.1)):
        after = load_pairs(tmp_path / f"out/a_{kind}.bin")
        np.testing.assert_array_equal(after.is_same, before.is_same)
        assert after.images[0::2] == before.images[0::2]
        assert 0 < detail(after.pixels(1, 112)) < most * sharp, kind
        color_range = np.ptp(after.pixels(1, 112).astype(int), axis=2).max()
        assert (color_range < 10) == (kind == "gray")


def detail(pixels: np.ndarray) -> float:
    return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())


def test_a_set_that_is_none_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.bin").write_bytes(b"nothing")
    monkeypatch.setattr(sys, "argv", [TOOL, str(tmp_path / "a.bin"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(TOOL, run_name="__main__")
    assert ended.value.code == 2 and "a.bin: not a pickle" in capsys.readouterr().err
