"""Harder versions of a verification set: the same pairs, of which every second image is worse."""

import sys

import numpy as np
from helpers.calling import called_module
from helpers.faces import write_pairs

from experiments import degrade_pairs
from partialfc.evaluation.pairs import load_pairs


def test_every_second_image_is_worse(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "a.bin", 20, 112)
    monkeypatch.setattr(sys, "argv", ["degrade_pairs", str(tmp_path / "a.bin"), str(tmp_path / "out")])
    degrade_pairs.main()
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


def test_a_set_that_is_none_is_one_line(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"nothing")
    done = called_module("experiments.degrade_pairs", tmp_path / "a.bin", tmp_path / "out")
    assert done.returncode == 2 and "a.bin: expected a verification set, the pickle of" in done.stderr
