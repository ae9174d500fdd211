"""One run a folder, which every rank sees."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.running import recipe_in, started

from partialfc.runtime import comm
from partialfc.runtime.process import run_lock
from partialfc.runtime.process.run_lock import lock_output_folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Its run goes on from one test to the next."""
    return recipe_in(tmp_path_factory.mktemp("run"))


@pytest.mark.kills
def test_a_second_run_in_one_folder_is_refused(recipe):
    with started(recipe, "--ranks", 1) as running:
        before = (recipe.parent / "output/metrics.jsonl").read_bytes()
        second = subprocess.run(
            [sys.executable, "-m", "partialfc.train", str(recipe)],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert (recipe.parent / "output/metrics.jsonl").read_bytes().startswith(before)
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.ended()[0] == 75
    assert second.returncode == 2 and not second.stdout
    holder = rf"process {running.ranks[0]} on \S+ is using it; choose another `output`, or wait"
    assert re.search(holder, second.stderr) and second.stderr.count("\n") == 1, second.stderr


def seen(folder: Path) -> str:
    """What a rank says of a folder of which the second rank sees another, as if on a disk of its own."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    mine = folder / ("other" if dist_ctx.rank == 1 else "one")
    mine.mkdir(exist_ok=True)
    try:
        with lock_output_folder(mine, dist_ctx):
            return "seen"
    except comm.CollectiveInputError as error:
        return str(error)


def without_locks(folder: Path) -> str:
    """What is said of a file system that has none."""
    error = OSError(errno.ENOLCK, "No locks available")
    try:
        with (
            mock.patch.object(run_lock.fcntl, "flock", side_effect=error),
            lock_output_folder(folder, comm.create_dist_context(torch.device("cpu"))),
        ):
            return "locked"
    except comm.CollectiveInputError as error:
        return str(error)


def test_a_folder_without_locks_is_named(ranks, tmp_path):
    told = ranks.run(1, without_locks, tmp_path)
    assert told == [f"{tmp_path}: No locks available; expected a file system with file locks"]


def test_a_folder_that_is_not_shared_is_refused(ranks, tmp_path):
    told = ranks.run(2, seen, tmp_path)
    assert len(set(told)) == 1 and re.search(r"rank 1 on \S+ does not see the files of rank 0", told[0])
