"""Folders, named pipes and devices are refused by every reader. Reading them could block, or never end."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.faces import write_pack

from partialfc.config import load_config
from partialfc.data import RecordDataset, images
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.data.packs.names import read_names
from partialfc.data.packs.pairs import pack_pairs
from partialfc.data.packs.sources import source_from_list
from partialfc.data.stored_embeddings import EmbeddingsInfo
from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs
from partialfc.inference.onnx import OnnxNetwork
from partialfc.inference.weights import read_weights
from partialfc.runtime.checkpoint import read_manifest
from partialfc.runtime.metrics_records import read_metrics

READERS: dict[str, Callable[[Path], object]] = {
    "pack/train.rec": lambda it: RecordDataset(it.parent),
    "pack/train.idx": lambda it: RecordDataset(it.parent),
    "pack/property": lambda it: RecordDataset(it.parent),
    "pack/identities.tsv": lambda it: read_names(it.parent),
    "pack/train.rec (fingerprint)": lambda it: pack_fingerprint(it.parent),
    "recipe.yaml": lambda it: load_config(str(it), []),
    "metrics.jsonl": read_metrics,
    "run.json": lambda it: read_manifest(it.parent),
    "about.json": lambda it: EmbeddingsInfo.read(it.parent),
    "set.bin": load_pairs,
    "weights.pth": read_weights,
    "weights.safetensors": read_weights,
    "a.jpg": images.read,
    "a.onnx": OnnxNetwork,
    "pairs.txt": lambda it: pack_pairs(it, it.parent, it.parent / "out.bin"),
    "train.lst": lambda it: source_from_list(it),
}


@pytest.mark.parametrize("kind", ["folder", "named pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused(tmp_path, name, kind):
    write_pack(tmp_path / "pack", 3, 2)
    path = tmp_path / name.split(" ")[0]
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises((InputError, IsADirectoryError)) as refused:
        READERS[name](path)
    if isinstance(refused.value, InputError):
        assert str(path.parent) in str(refused.value)
