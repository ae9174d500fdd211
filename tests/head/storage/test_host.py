"""Rows in host memory have the same bits as those on the device."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from partialfc.config import SGD, AdamW, AnyOptimizer, CosFace, HeadConfig
from partialfc.head import PartialFC

CLASSES, WIDTH, BATCH = 200, 8, 12


def inputs(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, WIDTH, generator=generator), torch.randint(
        CLASSES, (BATCH,), generator=generator
    )


def trained(options: dict[str, Any], optim: AnyOptimizer, device: str, ahead: int, drop: int | None) -> list:
    """Losses and rows after 12 steps, each prepared `ahead` steps ahead; step `drop` is prepared and not taken."""
    head = PartialFC(
        CLASSES, WIDTH, CosFace(scale=8.0), config=HeadConfig(**options), optim=optim, device=device
    )
    steps, losses = {}, []
    for number in range(12):
        for coming in range(number, min(12, number + ahead + 1)):
            if coming not in steps:
                steps[coming] = head.prepare(inputs(coming)[1], coming)
        if number == drop:
            continue
        local = inputs(number)[0].chunk(dist.get_world_size())[dist.get_rank()].to(device).requires_grad_()
        loss = head(local, steps[number])
        loss.backward()
        lr = 0.3 if isinstance(optim, SGD) else 0.01
        head.update(steps[number], lr, torch.tensor(number != 5, device=device))
        losses.append(loss.detach().cpu())
    return [*losses, *(rows.cpu().clone() for rows in head.centers.tensors.values())]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "optim"),
    [
        ({}, SGD()),
        ({"unsampled": "decay"}, SGD(nesterov=True)),
        ({"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"}, AdamW()),
        ({"centers_dtype": "bfloat16", "optim_state_dtype": "none"}, SGD()),
    ],
    ids=str,
)
def test_host_memory_gives_the_same_bits(ranks, device, options, optim, world_size):
    options = {"sample_rate": 0.3, **options}
    expected = ranks.run(world_size, trained, options, optim, device, 0, None)
    options |= {"memory": "host"}
    found = ranks.run(world_size, trained, options, optim, device, 1, None)
    for here, there in zip(found, expected, strict=True):
        assert all(map(torch.equal, here, there))


@pytest.mark.parametrize(("ahead", "drop"), [(0, None), (1, None), (3, None), (0, 4), (1, 4), (3, 4)])
def test_however_far_ahead_steps_are_prepared(ranks, device, ahead, drop):
    expected = ranks.run(2, trained, {"sample_rate": 0.3}, SGD(), device, ahead, drop)
    found = ranks.run(2, trained, {"sample_rate": 0.3, "memory": "host"}, SGD(), device, ahead, drop)
    for here, there in zip(found, expected, strict=True):
        assert all(map(torch.equal, here, there))


def trained_on_few_classes(options: dict[str, Any], device: str) -> list:
    """Three classes: of four ranks, the last has none."""
    head = PartialFC(
        3, WIDTH, CosFace(scale=8.0), config=HeadConfig(sample_rate=0.4, **options), device=device
    )
    losses = []
    for number in range(4):
        local = inputs(number)[0].chunk(dist.get_world_size())[dist.get_rank()].to(device).requires_grad_()
        step = head.prepare(inputs(number)[1] % 3, number)
        loss = head(local, step)
        loss.backward()
        head.update(step, 0.3)
        losses.append(loss.detach().cpu())
    return losses


@pytest.mark.parametrize("options", [{}, {"unsampled": "decay"}, {"centers_dtype": "bfloat16"}], ids=str)
def test_a_rank_without_classes(ranks, device, options):
    expected = ranks.run(4, trained_on_few_classes, options, device)
    assert ranks.run(4, trained_on_few_classes, options | {"memory": "host"}, device) == expected
