"""What ranks do together, bad luck on one of them included."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from partialfc.errors import InputError
from partialfc.runtime import comm


def fails_on(rank: int, error: Exception) -> str:
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    try:
        with comm.raise_on_all_ranks(dist_ctx):
            if dist_ctx.rank == rank:
                raise error
    except comm.CollectiveInputError as agreed:
        return str(agreed)
    return "nothing"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("a\n  b"), "a b"),
        (
            FileNotFoundError(2, "No such file or directory", "x.rec"),
            f"{Path('x.rec').absolute()}: No such file or directory",
        ),
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
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    gathered, work = comm.all_gather_async(torch.tensor([float(dist_ctx.rank)]), dist_ctx.host_group)
    summed = torch.tensor([1.0, dist_ctx.rank])
    summing = comm.all_reduce_async(summed, dist_ctx.group)
    work.wait()
    summing.wait()
    return gathered.tolist(), summed.tolist()


def test_gather_and_sum_under_way_at_once(ranks):
    assert ranks.run(3, gather_and_sum) == [([0.0, 1.0, 2.0], [3.0, 3.0])] * 3


def gathered(sent_as: torch.dtype | None) -> tuple[list[float], list[float], list[float]]:
    """Rows, what is beside them, and the gradient that a rank gets where each weighs all rows by rank + 1."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    local = torch.tensor([[dist_ctx.rank + 1 / 3]], requires_grad=True)
    beside = torch.tensor([1 / 3 - 1000 * dist_ctx.rank])
    rows, others = comm.all_gather_with_grad(
        local, beside, dist_ctx.group, gradient_factor=2, comm_dtype=sent_as
    )
    (rows * (dist_ctx.rank + 1e-6)).sum().backward()
    return rows[:, 0].tolist(), others.tolist(), local.grad[0].tolist()


@pytest.mark.parametrize("sent_as", [None, torch.float16], ids=str)
def test_rows_are_rounded_on_the_way_and_nothing_else_is(ranks, sent_as):
    rows = torch.tensor([1 / 3, 4 / 3, 7 / 3])
    beside = torch.tensor([1 / 3 - 1000 * rank for rank in range(3)]).tolist()
    gradient = (torch.tensor([2e-6 * 3 + 6])).tolist()  # float16 would make it 6
    expected = rows.to(sent_as or torch.float32).float().tolist(), beside, pytest.approx(gradient, rel=1e-7)
    assert ranks.run(3, gathered, sent_as) == [expected] * 3


def order_of_a_gather() -> list[str]:
    """What is done while rows are on their way."""
    dist_ctx, done = comm.create_dist_context(torch.device("cpu")), []
    start = comm.all_gather_async

    def started(*arguments):
        rows, work = start(*arguments)
        done.append("started")
        return rows, mock.Mock(wait=lambda: (work.wait(), done.append("there")))

    with mock.patch.object(comm, "all_gather_async", started):
        comm.all_gather_with_grad(
            torch.ones(1, 1), None, dist_ctx.group, overlap_fn=lambda: done.append("meanwhile")
        )
    return done


def test_something_is_done_while_rows_are_on_their_way(ranks):
    assert ranks.run(2, order_of_a_gather) == [["started", "meanwhile", "there"]] * 2
