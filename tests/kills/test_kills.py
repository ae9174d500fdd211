"""Some kills at random places; tests/kills/long_run.py makes as many as expected."""

import pytest
from kills.killing import Killing


@pytest.mark.kills
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_at_random_places_ends_with_the_same_bits(tmp_path, ranks):
    killing = Killing(tmp_path, ranks, seed=ranks)
    killing.undisturbed()
    killing.kill_until(3)
