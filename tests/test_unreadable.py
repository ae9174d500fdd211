"""Images that cannot be read: they end the run on all ranks, or are replaced and counted."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.calling import called
from helpers.faces import face
from helpers.runs import assert_refused, assert_same_bits, config_of, trained, whole

from partialfc.data import RecordDataset
from partialfc.data.packs.pack_writer import write_pack as write_samples
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
    assert_refused(ranks, 2, config, "data.reader: mxnet: No module named 'mxnet'; expected an environment")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_stops_all_ranks(ranks, pack, tmp_path, workers):
    config = config_of(damaged(pack, tmp_path / "pack"), tmp_path, data={"num_workers": workers})
    assert_refused(ranks, 2, config, r"train.rec, key \d+: 8 bytes; expected an image that OpenCV can read")


def test_images_that_cannot_be_read_are_replaced_alike_in_every_run_and_counted(ranks, pack, tmp_path):
    """115 images, 20 of them damaged; 10 steps of 24 are two epochs, each filled up to 5 steps."""
    folder = damaged(pack, tmp_path / "pack", 11, 30)
    states = {}
    for world_size, workers in ((1, 0), (2, 0), (2, 2)):
        output = tmp_path / f"{world_size}{workers}"
        sections = {
            "data": {"num_workers": workers, "on_corrupt": "skip"},
            "train": {"length": 10, "micro_batch_size": 12},
            "optim": {"lr": 0.0005},
        }
        config = config_of(folder, output, log={"every": 5}, **sections)
        states[world_size, workers] = whole(ranks.run(world_size, trained, config))
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert all(20 <= line["replaced_images"] <= 25 for line in lines if "loss" in line)
        log = (output / "log.txt").read_text()
        assert re.search(r"step 10/10 .* 2\d unreadable images replaced", log)
        named = [key for line in lines for key in line.get("unreadable", [])]
        assert sorted(named) == list(range(11, 31))  # each once, over two epochs
        assert "more unreadable records: keys " in log
        summary = json.loads((output / "summary.json").read_text())
        assert (
            summary["unreadable"] == {"records": 20, "keys": list(range(11, 31))} and "corrupt" not in summary
        )
    assert_same_bits(states[2, 2], states[2, 0])
    assert curve_of(tmp_path / "20") == pytest.approx(curve_of(tmp_path / "10"), rel=1e-4)


def curve_of(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_an_image_of_a_verification_set_that_cannot_be_read_stops_all_ranks(ranks, pack, tmp_path):
    shutil.copytree(pack, tmp_path / "pack")
    write_pairs(tmp_path / "pack/bad.bin", [b"no image"] * 40, [True] * 20)
    assert_refused(
        ranks, 2, config_of(tmp_path / "pack", tmp_path), "bad.bin: image 0: 8 bytes; expected an image"
    )


def test_records_named_before_a_resume_are_not_named_again(ranks, pack, tmp_path):
    folder = damaged(pack, tmp_path / "pack", 11, 30)
    sections = {"data": {"on_corrupt": "skip"}, "train": {"length": 10}, "checkpoint": {"every": 5}}
    config = config_of(folder, tmp_path / "run", log={"every": 5}, **sections)
    ranks.run(2, trained, config, 7)
    ranks.run(2, trained, config)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sorted(key for line in lines for key in line.get("unreadable", [])) == list(range(11, 31))


def test_records_of_which_the_jpeg_library_warns_are_counted(ranks, tmp_path, capfd):
    """They are decoded, with gray where data are missing."""

    def samples():
        for image in range(48):
            encoded = face(image // 4, image)
            yield image // 4, encoded[: len(encoded) * 2 // 3] + b"\xff\xd9" if image in (5, 17) else encoded

    write_samples(tmp_path / "pack", samples(), num_classes=12, size=32)
    config = config_of(tmp_path / "pack", tmp_path / "run", data={"num_workers": 1}, train={"length": 4})
    ranks.run(2, trained, config)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["corrupt"] == {"records": 2, "keys": [6, 18]} and "unreadable" not in summary
    assert "records with corrupt JPEG data: keys " in (tmp_path / "run/log.txt").read_text()
    assert "JPEG" not in capfd.readouterr().err


def test_what_else_a_worker_prints_is_passed_on():
    program = (
        "import os, sys; from partialfc.data import decoder_warnings as it; it.capture(); "
        "os.write(2, b'Corrupt JPEG data: 3 bytes\\nother words\\n'); print(it.warned(), it.warned()); "
        "sys.stderr.write('more\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True False\n" and done.stderr == "other words\nmore\n"


@pytest.mark.parametrize("order", ["by class", "mixed"])
def test_classes_without_images_are_not_counted_as_identities(ranks, tmp_path, order):
    labels = [label for label in (0, 50, 100, 150) for _ in range(6)]
    labels = labels if order == "by class" else labels[::-1]
    write_samples(
        tmp_path / "pack", ((it, face(it, n)) for n, it in enumerate(labels)), num_classes=None, size=32
    )
    assert RecordDataset(tmp_path / "pack").classes_with_images() == 4
    config = config_of(tmp_path / "pack", tmp_path / "run", train={"length": 1, "global_batch_size": 12})
    ranks.run(1, trained, config)
    log = (tmp_path / "run/log.txt").read_text()
    assert "24 images of 4 identities (147 classes without images); global batch size 12" in log
    listing = tmp_path / "train.lst"
    for number, label in enumerate(labels):
        (tmp_path / f"{number}.jpg").write_bytes(face(label, number))
    listing.write_text("".join(f"{n}\t{it}\t{n}.jpg\n" for n, it in enumerate(labels)))
    done = called("pack", listing, tmp_path / "packed", "--size", 32)
    assert (
        "24 images of 4 identities\n147 of 151 classes have no images; --min-images 1 skips them\n"
        in done.stdout
    )


def test_a_pack_with_a_damaged_label_is_not_counted(tmp_path):
    write_samples(tmp_path / "pack", ((it, face(it, 0)) for it in (2, 1, 0)), num_classes=None, size=32)
    dataset = RecordDataset(tmp_path / "pack")
    assert dataset.classes_with_images() == 3
    dataset.num_classes = 2  # as if a label were beyond them
    assert dataset.classes_with_images() is None
