"""A step of the head never waits for the device."""

import pytest
import torch
from helpers.waiting import NoWaiting
from test_losses import EXACT

from partialfc.config import (
    AdaFace,
    AnyLoss,
    CosineSoftmax,
    CurricularFace,
    ElasticArcFace,
    HeadConfig,
    MagFace,
)
from partialfc.head import PartialFC
from partialfc.runtime import comm

WIDTH, RATE = 5, 0.3
MARGINS = [
    *EXACT,
    AdaFace(),
    CurricularFace(),
    MagFace(),
    CosineSoftmax(scale=300.0),
    ElasticArcFace(order="paper"),
    ElasticArcFace(order="released"),
]


def step_without_waiting(margin: AnyLoss, device: str) -> None:
    config = HeadConfig(sample_rate=0.5, interclass_threshold=0.5)
    head = PartialFC(7, WIDTH, margin, config=config, device=device)
    embeddings = torch.randn(
        4 // comm.rank_and_world_size(head.group)[1], WIDTH, device=device, requires_grad=True
    )
    with NoWaiting(device):
        step = head.prepare(torch.tensor([1, 2, -1, 4]), 0)
        head(embeddings, step).backward()
        head.update(step, RATE, embeddings.grad.isfinite().all())


@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_a_step_never_waits_for_the_device(ranks, device, margin):
    if device == "cpu":
        ranks.run(2, step_without_waiting, margin, device)
    else:  # gloo, which the ranks of one GPU talk by, waits
        step_without_waiting(margin, device)


WAITING = {
    "item": lambda it: it.sum().item(),
    "tolist": lambda it: it.tolist(),
    "cpu": lambda it: it.cpu(),
    "bool": lambda it: bool(it.sum()),
    "nonzero": lambda it: it.nonzero(),
    "read by a mask": lambda it: it[it > 0],
    "write by a mask": lambda it: it.__setitem__(it > 0, it.new_ones(3)),
    "repeat_interleave": lambda it: it.repeat_interleave(torch.ones(4, dtype=torch.int64, device=it.device)),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_noticed(device, name):
    tensor = torch.arange(4.0, device=device)
    with NoWaiting(device), pytest.raises((AssertionError, RuntimeError)):
        WAITING[name](tensor)
