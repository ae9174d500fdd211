"""A run that loses a process, or one of whose ranks stands still."""

import os
import re
import signal
from pathlib import Path

import pytest
from helpers.running import exited, recipe_in, started

pytestmark = pytest.mark.kills


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Its run goes on from one test to the next."""
    return recipe_in(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_ends_all(recipe, victim):
    with started(recipe, "--ranks", 2) as running:
        os.kill(running.ranks[victim], signal.SIGKILL)
        code, _, err = running.ended()
    assert code == 128 + signal.SIGKILL
    named = rf"rank {victim} on \S+ was killed by SIGKILL, probably because memory ran out .*\n"
    assert re.fullmatch(rf"(error: lost a rank; the run ended\n)?{named}", err), err


def test_ranks_end_with_their_launcher(recipe):
    with started(recipe, "--ranks", 2) as running:
        running.process.kill()
        code, _, err = running.ended()
    assert code == -signal.SIGKILL and not err
    assert len(running.ranks) == 2 and all(map(exited, running.ranks))


def test_all_ranks_are_started_again_where_one_dies(recipe):
    """From the last checkpoint; not after a signal that asks for the end."""
    with started(recipe, "--ranks", 2, "launch.max_restarts=1", "checkpoint.every=5") as running:
        os.kill(running.ranks[1], signal.SIGKILL)
        going_on = 0
        for line in running.process.stdout:
            going_on += line.startswith("resuming from")
            if going_on and line.startswith("step "):
                break
        running.process.send_signal(signal.SIGTERM)
        code, out, err = running.ended()
    assert code == 75 and out[-1].startswith("stopped by SIGTERM") and going_on == 1
    assert "restarting all ranks (attempt 1 of 1)\n" in err


def test_a_rank_that_stands_still_is_named_and_ends_all(recipe):
    with started(recipe, "--ranks", 2, "launch.step_timeout=2 seconds") as running:
        os.kill(running.ranks[1], signal.SIGSTOP)
        code, _, err = running.ended()
    assert code == 4
    assert re.fullmatch(r"error: rank 1 on \S+ stalled at step \d+, in .*; its process is not running\n", err)
    assert not any(Path(f"/proc/{pid}").exists() for pid in running.ranks)
