"""The ten lines of mathematics: sharded is dense, and the head is the ten lines."""

import pytest
import torch
from helpers.ranks import mine
from helpers.reference import dense_loss, sharded_loss
from torch import Tensor

from partialfc.config import AnyLoss, ArcFace, CenterSGD, CosFace
from partialfc.head import PartialFC
from partialfc.runtime import comm

CLASSES, WIDTH = 7, 5
LABELS = torch.tensor([0, 6, 3, 2, 2, 5])
Found = tuple[Tensor, Tensor, Tensor]  # loss, gradients by embeddings and centers


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[0]))


def ten_lines(margin: AnyLoss) -> Found:
    local, owned = mine(numbers(6, WIDTH)).requires_grad_(), new_head(margin).centers.local_classes
    centers = numbers(CLASSES, WIDTH)[owned.start : owned.stop].requires_grad_()
    loss = sharded_loss(local, centers, LABELS, owned, margin, comm.default_group())
    return loss.detach(), *torch.autograd.grad(loss, [local, centers])


def by_head(margin: AnyLoss) -> Found:
    head, local = new_head(margin), mine(numbers(6, WIDTH)).requires_grad_()
    before = (
        head.centers.tensors["centers"].copy_(numbers(CLASSES, WIDTH)[head.centers.local_classes]).clone()
    )
    step = head.prepare(LABELS, 0)
    loss = head(local, step)
    loss.backward()
    head.update(step, 1.0)
    return loss.detach(), local.grad, before - head.centers.tensors["centers"]


def new_head(margin: AnyLoss) -> PartialFC:
    rule = CenterSGD(momentum=0.0, weight_decay=0.0)
    return PartialFC(CLASSES, WIDTH, margin, optim=rule, dtype=torch.float64)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("margin", [ArcFace(), CosFace(scale=8.0)], ids=repr)
@pytest.mark.parametrize("function", [ten_lines, by_head])
def test_sharded_is_dense(ranks, function, margin, world_size):
    embeddings, centers = numbers(6, WIDTH).requires_grad_(), numbers(CLASSES, WIDTH).requires_grad_()
    loss = dense_loss(embeddings, centers, LABELS, margin, active=torch.ones(CLASSES, dtype=torch.bool))
    expected = torch.autograd.grad(loss, [embeddings, centers])
    losses, *gradients = zip(*ranks.run(world_size, function, margin), strict=True)
    torch.testing.assert_close(list(losses), [loss.detach()] * world_size)
    torch.testing.assert_close([torch.cat(parts) for parts in gradients], list(expected))
