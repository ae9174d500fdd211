"""Hard negatives: the classes near those of a batch take part, as a formula on one process would find them."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.ranks import mine
from helpers.reference import dense_loss
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import AnyLoss, CenterSGD, CosFace, HeadConfig, LinearSoftmax
from partialfc.errors import InputError
from partialfc.head import PartialFC, sampling
from partialfc.head.neighbors import REFRESH_INTERVAL, Neighbors
from partialfc.head.precision import MatmulPrecision
from partialfc.head.storage.initial import init_centers

CLASSES, WIDTH, BATCH, SEED, LR, STEPS = 23, 5, 6, 7, 0.5, 45
MARGIN = CosFace(scale=16.0)
LATER = 4  # steps from those in which lists are made to those in which they are used
HARD: dict[str, Any] = {
    "sampling": "hard",
    "sample_rate": 0.4,
    "hard_neighbors": 3,
    "hard_refresh_steps": 2 * REFRESH_INTERVAL,
}
CASES: dict[str, dict[str, Any]] = {
    "half of them": HARD,
    "a neighbor for some, log_rate": HARD | {"hard_fraction": 0.3, "logit_correction": "log_q"},
    "as many as there are": HARD | {"hard_fraction": 0.99, "hard_neighbors": 100, "hard_refresh_steps": 1},
    "sampled, then full": HARD | {"sample_rate": {0: 0.4, 30: 1.0}},
}


class Steps(NamedTuple):
    losses: list[Tensor]
    gradients: list[Tensor]  # by the embeddings
    centers: Tensor
    lists: Tensor


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(-1, CLASSES, (BATCH,), generator=generator)
    return torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=generator), labels


def lists_of(weight: Tensor, config: HeadConfig) -> Tensor:
    cosine = normalize(weight) @ normalize(weight).T
    return cosine.fill_diagonal_(-torch.inf).argsort(dim=1, descending=True)[
        :, : min(config.hard_neighbors, len(weight) - 1)
    ]


def near(lists: np.ndarray, number: int, allowed: int) -> set[int]:
    """Each list gives its first, then each its second, until so many are given: who begins goes round."""
    count = len(lists)
    extra = allowed % count if count else 0
    order = sorted(range(count), key=lambda place: (place - number * extra) % count)
    given = [int(lists[place, rank]) for rank in range(lists.shape[1]) for place in order]
    return set(given[:allowed])


def dense(options: dict[str, Any]) -> Steps:
    config = HeadConfig(**options)
    weight = torch.empty(CLASSES, WIDTH, dtype=torch.float64)
    init_centers(weight, SEED, range(CLASSES), torch.device("cpu"))
    lists = torch.full((CLASSES, min(config.hard_neighbors, CLASSES - 1)), -1)
    made: dict[int, tuple[slice, Tensor]] = {}
    block = -(-CLASSES // max(1, config.hard_refresh_steps // REFRESH_INTERVAL))
    losses, gradients = [], []
    for number in range(STEPS):
        embeddings, labels = batch(number)
        embeddings.requires_grad_()
        weight = weight.detach().requires_grad_()
        if number - LATER in made:
            where, found = made[number - LATER]
            lists[where] = found
        active, correction = torch.zeros(CLASSES, dtype=torch.bool), torch.zeros(CLASSES, dtype=torch.float64)
        if isinstance(config.sample_rate, dict) and number >= 30:
            active[:] = True
        else:
            count = sampling.num_sampled_classes(CLASSES, 0.4)
            listed = [target for target in sorted(set(labels[labels >= 0].tolist())) if lists[target, 0] >= 0]
            allowed = min(int(config.hard_fraction * count), lists.shape[1] * len(listed))
            certain = sorted(near(lists[listed].numpy(), number, allowed))
            active[sampling.sample_classes(CLASSES, count - allowed, SEED, number, range(CLASSES))] = True
            correction[active] = -math.log((count - allowed) / CLASSES)
            active[certain], correction[certain] = True, 0.0
            active[labels[labels >= 0]] = True
        loss = dense_loss(
            embeddings, weight, labels, MARGIN, active=active,
            logit_correction=correction if config.logit_correction == "log_q" else 0.0,
        )  # fmt: skip
        d_embeddings, d_weight = torch.autograd.grad(loss, [embeddings, weight])
        losses.append(loss.detach())
        gradients.append(d_embeddings)
        weight = weight.detach() - LR * d_weight
        if number % REFRESH_INTERVAL == 0:
            turn = number // REFRESH_INTERVAL % -(-CLASSES // block) * block
            where = slice(turn, turn + block)
            made[number] = where, lists_of(weight, config)[where]
    return Steps(losses, gradients, weight, lists)


def head_of(options: dict[str, Any], device: str) -> PartialFC:
    return PartialFC(
        CLASSES,
        WIDTH,
        MARGIN,
        config=HeadConfig(**options),
        optim=CenterSGD(momentum=0.0, weight_decay=0.0),
        seed=SEED,
        dtype=torch.float64,
        device=device,
    )


def run(head: PartialFC, device: str, start: int, stop: int) -> tuple[list[Tensor], list[Tensor]]:
    losses, gradients = [], []
    prepared = head.prepare(batch(start)[1], start)
    for number in range(start, stop):
        images, step = batch(number)[0], prepared
        local = (mine(images) if head.group else images).to(device).requires_grad_()
        loss = head(local, step)
        if number + 1 < stop:
            prepared = head.prepare(batch(number + 1)[1], number + 1)  # ahead of time
        loss.backward()
        head.update(step, LR)
        losses.append(loss.detach().cpu())
        gradients.append(local.grad.cpu())
    return losses, gradients


def sharded(options: dict[str, Any], device: str) -> Steps:
    head = head_of(options, device)
    losses, gradients = run(head, device, 0, STEPS)
    return Steps(losses, gradients, head.centers.tensors["centers"].cpu(), head.state_dict()["neighbors"])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_sharded_is_dense(ranks, name, world_size, device):
    found, expected = ranks.run(world_size, sharded, CASES[name], device), dense(CASES[name])
    for rank in found:
        torch.testing.assert_close(rank.losses, expected.losses)
        assert torch.equal(rank.lists.long(), expected.lists)
    gradients = [torch.cat(parts) for parts in zip(*(it.gradients for it in found), strict=True)]
    torch.testing.assert_close(gradients, expected.gradients, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        torch.cat([it.centers for it in found]), expected.centers, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("stop", [*range(REFRESH_INTERVAL, REFRESH_INTERVAL + LATER + 2)])
def test_a_head_that_is_saved_goes_on_the_same(stop, device):
    """Also while lists are on their way."""
    whole = head_of(HARD, device)
    run(whole, device, 0, stop)
    saved = {name: it.clone() for name, it in whole.state_dict().items()}
    expected = run(whole, device, stop, STEPS)
    again = head_of(HARD, device)
    again.load_state_dict(saved)
    assert all(
        torch.equal(*pair)
        for pair in zip(*map(sum_, (run(again, device, stop, STEPS), expected)), strict=True)
    )


def sum_(steps: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
    return steps[0] + steps[1]


def test_centers_are_compared_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(101, 8, generator=generator)
    config = HeadConfig(
        sampling="hard", sample_rate=0.5, hard_neighbors=7, hard_refresh_steps=3 * REFRESH_INTERVAL
    )
    monkeypatch.setattr("partialfc.head.neighbors._MAX_COSINES_PER_BLOCK", 200)
    device = torch.device("cpu")
    found = Neighbors(
        101, range(101), config, MatmulPrecision("float32", device, torch.float32), None, device
    )
    for number in range(0, 3 * REFRESH_INTERVAL + LATER, LATER):
        found.commit_pending(number)
        found.refresh(number, centers)
    assert torch.equal(found.state()["neighbors"].long(), lists_of(centers, config))


def test_near_classes_take_part_in_the_place_of_others(device):
    head = head_of(HARD, device)
    run(head, device, 0, STEPS)
    lists = head.state_dict()["neighbors"]
    for number in range(STEPS, STEPS + 20):
        labels = batch(number)[1]
        step = head.prepare(labels, number)
        rows, targets = set(step.classes.host_rows.tolist()), set(labels[labels >= 0].tolist())
        assert (
            sum(len(rows & set(lists[target].tolist())) for target in targets) >= 4
        )  # half of 9, rounded down
        assert len(rows) <= 9 + len(targets)
        head.discard(step)


@pytest.mark.parametrize(
    ("options", "margin", "message"),
    [
        ({"sample_rate": 1.0}, MARGIN, "head.sampling: hard requires head.sample_rate below 1"),
        ({"memory": "host"}, MARGIN, "head.memory: host; expected device"),
        ({"subcenters": 2}, MARGIN, "head.subcenters: 2; expected 1"),
        ({}, LinearSoftmax(), "head.sampling: hard; expected uniform, as loss.name: linear has no cosines"),
        ({"hard_fraction": 1.0}, MARGIN, "hard_fraction: expected float < 1.0; found 1.0"),
        ({"hard_neighbors": 0}, MARGIN, "hard_neighbors: expected int >= 1; found 0"),
        ({"hard_refresh_steps": 0}, MARGIN, "hard_refresh_steps: expected int >= 1; found 0"),
    ],
)
def test_what_has_no_neighbours_is_refused(options: dict[str, Any], margin: AnyLoss, message: str):
    with pytest.raises(InputError, match=message):
        PartialFC(CLASSES, WIDTH, margin, config=HeadConfig(**(HARD | options)))
