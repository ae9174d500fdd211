"""Gradients that are summed over the ranks in 16 bits."""

import pytest
import torch
from torch import Tensor, nn

from partialfc.runtime import comm
from partialfc.training.replicas import GradientBuckets


def summed(sent_as: torch.dtype | None) -> Tensor:
    """All gradients of a network, summed over the ranks."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    gradients = GradientBuckets(module.parameters(), dist_ctx.group, reduce_dtype=sent_as)
    inputs = torch.randn(24, 40).chunk(dist_ctx.world_size)[dist_ctx.rank]
    with gradients.all_reduce_on_exit():
        module(inputs).square().sum().backward()
    return torch.cat([it.grad.flatten() for it in module.parameters()])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_summed_in_bfloat16_are_off_by_its_rounding(ranks, world_size):
    """Of each rank's part, and of the sum; alone nothing is sent, and nothing rounded."""
    exact, rounded = (ranks.run(world_size, summed, sent_as)[0] for sent_as in (None, torch.bfloat16))
    error = (rounded - exact).norm() / exact.norm()
    assert error == 0 if world_size == 1 else 1e-4 < error < 2**-8
