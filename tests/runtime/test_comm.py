"""What ranks do together, bad luck on one of them included."""

import pytest
import torch

from partialfc.errors import InputError
from partialfc.runtime import comm


def fails_on(rank: int, error: Exception) -> str:
    ranks = comm.ranks_of(torch.device("cpu"))
    try:
        with comm.fail_on_all_ranks(ranks):
            if ranks.rank == rank:
                raise error
    except comm.CollectiveInputError as agreed:
        return str(agreed)
    return "nothing"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("a\n  b"), "a b"),
        (FileNotFoundError(2, "No such file or directory", "x.rec"), "x.rec: No such file or directory"),
        (OSError("x: disk full"), "x: disk full"),
    ],
)
def test_all_ranks_raise_what_one_rank_met(ranks, error, message):
    assert ranks.run(3, fails_on, 1, error) == [message] * 3


def test_all_ranks_go_on_where_none_fails(ranks):
    assert ranks.run(2, fails_on, 5, InputError("x")) == ["nothing"] * 2


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("operands could not be broadcast together")])
def test_a_defect_is_not_taken_for_bad_input(ranks, error):
    with pytest.raises(AssertionError, match=type(error).__name__):
        ranks.run(1, fails_on, 0, error)


def gather_and_sum() -> tuple[list[float], list[float]]:
    ranks = comm.ranks_of(torch.device("cpu"))
    gathered, work = comm.start_gather(torch.tensor([float(ranks.rank)]), ranks.host)
    summed = torch.tensor([1.0, ranks.rank])
    summing = comm.start_sum(summed, ranks.group)
    work.wait()
    summing.wait()
    return gathered.tolist(), summed.tolist()


def test_gather_and_sum_under_way_at_once(ranks):
    assert ranks.run(3, gather_and_sum) == [([0.0, 1.0, 2.0], [3.0, 3.0])] * 3
