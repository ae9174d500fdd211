"""Benchmarks of the head, of checkpoints and of the loader, at small sizes: they run, and their numbers are complete."""

import json

import cv2
from helpers.calling import called_module
from helpers.faces import write_pack


def test_the_head_and_its_plot(tmp_path):
    rows, picture = tmp_path / "rows.json", tmp_path / "head.png"
    done = called_module(
        "benchmarks.head", "2000:1.0", "2000:0.1", "--steps", 2, "--batch", 8, "--json", rows
    )
    assert done.returncode == 0, done.stderr
    full, sampled = json.loads(rows.read_text())
    for row in (full, sampled):
        parts = ("ours_ms", "textbook_ms", "products_ms", "traffic_ms", "over_floor", "resident_bytes")
        assert all(row[name] > 0 for name in parts), row
    assert full["planned_bytes"] >= sampled["planned_bytes"] and full["gflops"] > sampled["gflops"]
    done = called_module("benchmarks.plot_head", rows, "--out", picture)
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(picture)).std() > 0


def test_checkpoints(tmp_path):
    rows = tmp_path / "rows.json"
    done = called_module(
        "benchmarks.checkpoint", tmp_path / "run", "--identities", 2000, "--saves", 1, "--json", rows
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(rows.read_text())
    assert row["bytes"] > 2000 * 512 * 4 and row["written_s"] > 0


def test_the_loader(tmp_path):
    write_pack(tmp_path / "pack", 60, 10, 32)
    done = called_module("benchmarks.loader", tmp_path / "pack", "--images", 512)
    assert done.returncode == 0, done.stderr
    assert "whole loader, 1 worker(s)" in done.stdout
