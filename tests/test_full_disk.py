"""A disk that takes no more, in a save and in the log."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.running import recipe_in, started

pytestmark = pytest.mark.kills


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Its run goes on from one test to the next."""
    return recipe_in(tmp_path_factory.mktemp("run"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a file system here, which wants root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_neither_the_run_nor_the_checkpoint_before(recipe, small_disk):
    """Neither in a save nor in the log; where there is room again, the run is saved again."""
    arguments = ["--ranks", 2, f"output={small_disk / 'run'}", "checkpoint.every=10"]
    with started(recipe, *arguments, lines=4) as running:
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        said = []
        for line in running.process.stdout:
            said.append(line)
            if any("failed:" in it for it in said) and any("continues without" in it for it in said):
                break
        before = (small_disk / "run/checkpoints/latest").resolve()
        filler.unlink()
        for _ in running.process.stdout:
            if (small_disk / "run/checkpoints/latest").resolve() != before:
                break
        os.kill(running.process.pid, signal.SIGTERM)
        code, out, err = running.ended()
    refused = next(it for it in said if "failed:" in it)
    assert re.search(
        r"checkpoint at step \d+ failed: .*/disk/run/.*: No space left on device \(0\.0 MiB free\); training continues",
        refused,
    )
    assert any(
        re.search(r"/disk/run.*: No space left on device \(0\.0 MiB free\); training continues without", it)
        for it in said
    )
    assert code == 75 and out[-1].endswith("; checkpoint saved") and not err, (code, out[-3:], err)
    with started(recipe, *arguments) as running:
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.ended()[0] == 75
