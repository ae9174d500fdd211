"""Losses that keep a state: steps of the sharded head beside those of a dense formula, one of them skipped."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from helpers.ranks import mine
from helpers.reference import drawn_classes
from torch import Tensor

from partialfc.config import SGD, AnyLoss, HeadConfig
from partialfc.head import PartialFC
from partialfc.head.storage.initial import init_centers

CLASSES, WIDTH, BATCH, SEED, LR = 11, 5, 6, 7, 0.3
SKIPPED = 2
LABELS = [[0, 6, 3, -1, 2, 2], [5, -1, 1, 4, 6, 0], [1, 2, 3, 4, 5, 6], [-1] * 5 + [3], [0, 9, 9, 10, -1, 1]]

State = dict[str, Tensor]
# embeddings [B, D], weight [C, D], labels [B], active [C], state -> loss, the state with the batch seen
Formula = Callable[[Tensor, Tensor, Tensor, Tensor, State], tuple[Tensor, State]]


class Steps(NamedTuple):
    losses: list[Tensor]
    gradients: list[Tensor]  # by the embeddings
    centers: Tensor  # after the last step
    state: State


def images(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    lengths = torch.tensor([[1e-5], [20.0], [300.0], [5.0], [60.0], [0.5]], dtype=torch.float64)
    return lengths * torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=generator)


def dense(formula: Formula, state: State, sample_rate: float, device: str, width: int = WIDTH) -> Steps:
    weight = torch.empty(CLASSES, width, dtype=torch.float64)
    init_centers(weight, SEED, range(CLASSES), torch.device(device))
    losses, gradients = [], []
    for number, labels in enumerate(map(torch.tensor, LABELS)):
        embeddings = images(number).requires_grad_()
        weight.requires_grad_()
        loss, seen = formula(embeddings, weight, labels, active_classes(number, labels, sample_rate), state)
        d_embeddings, d_weight = torch.autograd.grad(loss, [embeddings, weight])
        losses.append(loss.detach())
        gradients.append(d_embeddings)
        if number != SKIPPED:
            weight, state = (weight - LR * d_weight).detach(), seen
    return Steps(losses, gradients, weight.detach(), state)


def active_classes(number: int, labels: Tensor, sample_rate: float) -> Tensor:
    if sample_rate == 1:
        return torch.ones(CLASSES, dtype=torch.bool)
    active = torch.zeros(CLASSES, dtype=torch.bool)
    active[torch.from_numpy(drawn_classes(CLASSES, sample_rate, SEED, number))] = True
    active[labels[labels >= 0]] = True
    return active


def stepped(head: PartialFC, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of a head's steps, and the gradients by this rank's embeddings."""
    losses, gradients = [], []
    for number, labels in enumerate(map(torch.tensor, LABELS)):
        local = mine(images(number)).to(device).requires_grad_()
        step = head.prepare(labels, number)
        with torch.no_grad():
            evaluated = head(local, step)  # sees the batch, and changes nothing
        loss = head(local, step)
        loss.backward()
        head.update(step, LR, torch.tensor(number != SKIPPED, device=device))
        assert torch.equal(evaluated, loss)
        losses.append(loss.detach().cpu())
        gradients.append(local.grad.cpu())
    return losses, gradients


def sharded(margin: AnyLoss, options: dict[str, Any], device: str) -> Steps:
    """This rank's."""
    head = PartialFC(
        CLASSES,
        WIDTH,
        margin,
        config=HeadConfig(**options),
        optim=SGD(momentum=0.0, weight_decay=0.0),
        seed=SEED,
        dtype=torch.float64,
        device=device,
    )
    losses, gradients = stepped(head, device)
    saved = head.state_dict()
    state = {name.removeprefix("loss_"): it.cpu() for name, it in saved.items() if name.startswith("loss_")}
    return Steps(losses, gradients, head.centers.tensors["centers"].cpu(), state)


def assert_equal(found: list[Steps], expected: Steps) -> None:
    """found: of each rank."""
    for rank in found:
        torch.testing.assert_close(rank.losses, expected.losses)
        torch.testing.assert_close(rank.state, expected.state)
    gradients = [torch.cat(parts) for parts in zip(*(it.gradients for it in found), strict=True)]
    torch.testing.assert_close(gradients, expected.gradients, rtol=1e-6, atol=1e-9)
    centers = torch.cat([it.centers for it in found])
    torch.testing.assert_close(centers, expected.centers, rtol=1e-6, atol=1e-9)
