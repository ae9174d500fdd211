"""Some events at random moments; tests/kills/long_run.py is the whole campaign."""

import random

import pytest
from kills.disturbed_runs import CALLS, KILLS, STOPS, DisturbedRuns


@pytest.mark.kills
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disturbed_run_ends_with_the_same_bits(tmp_path, ranks):
    runs = DisturbedRuns(tmp_path, ranks, seed=ranks)
    runs.run_undisturbed()
    runs.disturb(random.Random(ranks).sample([*CALLS, *KILLS, *STOPS], 3))
