"""Containers: users without a home directory, and packs on read-only media."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from partialfc.data import index

RECIPE = """
data: {path: PACK, num_workers: 1, synthetic: {identities: 20, images: 2, unseen: 20, pairs: 20, size: 32}}
backbone: {width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 3, global_batch_size: 8}
evaluation: {every: 3}
device: cpu
output: OUTPUT
"""


def train(folder: Path, output: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    recipe = folder / f"{output}.yaml"
    recipe.write_text(RECIPE.replace("PACK", str(folder / "pack")).replace("OUTPUT", str(folder / output)))
    known = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "TMPDIR") if name in os.environ}
    environment = known | {"PYTHONPATH": str(Path(__file__).with_name("no_home"))}
    command = [*prefix, sys.executable, "-m", "partialfc", "train", str(recipe)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)


def test_a_run_needs_no_home_directory_and_only_reads_a_complete_pack(tmp_path):
    read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "bash", "-c", read_only, str(tmp_path / "pack")]
    done = train(tmp_path, "first")
    assert done.returncode == 0, done.stderr
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here: root is required")
    (tmp_path / "pack/.lock").unlink()
    done = train(tmp_path, "second", *prefix)
    assert done.returncode == 0 and "finished at step 3" in done.stdout, done.stderr
    assert not (tmp_path / "pack/.lock").exists()


def test_an_index_is_built_without_a_home_directory(tmp_path, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(index, "MIN_CACHED_BYTES", 0)
    source = tmp_path / "train.idx"
    source.write_text("1\t0\n")
    found = index.cached_index([source], lambda: (np.array([1]), np.array([0])))
    assert found.find(1) == 0 and found.cache == tmp_path / ".train.idx.cache"
