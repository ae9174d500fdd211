"""Images that cannot be read: they end the run on all ranks, or are replaced and counted."""

import json
import re
import shutil
from pathlib import Path

import pytest
from runs import assert_refused, assert_same_bits, config_of, trained, whole

from partialfc.data.packs.pairs import write_pairs
from partialfc.data.recordio import RecordFile, RecordWriter


def damaged(pack: Path, folder: Path, first: int = 3, last: int = 115) -> Path:
    """A copy whose images from the third on, or from `first` to `last`, are no images."""
    shutil.copytree(pack, folder)
    records = RecordFile(folder / "train.rec")
    with RecordWriter(folder / "new.rec", folder / "new.idx") as writer:
        for key in records.keys:
            header, payload = records[key]
            writer.write(key, header, b"no image" if first <= key <= last else bytes(payload))
    for suffix in (".rec", ".idx"):
        (folder / f"new{suffix}").replace(folder / f"train{suffix}")
    return folder


def test_without_mxnet_its_reader_is_refused(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, data={"reader": "mxnet"})
    assert_refused(ranks, 2, config, "data.reader: mxnet: No module named 'mxnet'; wanted an environment")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_stops_all_ranks(ranks, pack, tmp_path, workers):
    config = config_of(damaged(pack, tmp_path / "pack"), tmp_path, data={"workers": workers})
    assert_refused(ranks, 2, config, r"train.rec, key \d+: 8 bytes that are no image OpenCV can read")


def test_images_that_cannot_be_read_are_replaced_alike_in_every_run_and_counted(ranks, pack, tmp_path):
    """115 images, 20 of them damaged; 10 steps of 24 are two epochs, each filled up to 5 steps."""
    folder = damaged(pack, tmp_path / "pack", 11, 30)
    states = {}
    for world_size, workers in ((1, 0), (2, 0), (2, 2)):
        output = tmp_path / f"{world_size}{workers}"
        sections = {
            "data": {"workers": workers, "on_corrupt": "skip"},
            "train": {"length": 10, "micro_batch": 12},
            "optim": {"lr": 0.0005},
        }
        config = config_of(folder, output, report={"every": 5}, **sections)
        states[world_size, workers] = whole(ranks.run(world_size, trained, config))
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert all(20 <= line["replaced"] <= 25 for line in lines if "loss" in line)
        assert re.search(r"step 10/10 .* 2\d images unreadable, others in", (output / "log.txt").read_text())
    assert_same_bits(states[2, 2], states[2, 0])
    assert curve_of(tmp_path / "20") == pytest.approx(curve_of(tmp_path / "10"), rel=1e-4)


def curve_of(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_an_image_of_a_verification_set_that_cannot_be_read_stops_all_ranks(ranks, pack, tmp_path):
    shutil.copytree(pack, tmp_path / "pack")
    write_pairs(tmp_path / "pack/bad.bin", [b"no image"] * 40, [True] * 20)
    assert_refused(
        ranks, 2, config_of(tmp_path / "pack", tmp_path), "bad.bin: image 0: 8 bytes that are no image"
    )
