"""What the head computes in float32, and with factors rounded to bfloat16, beside the dense head in double precision."""

from unittest import mock

import pytest
import torch
from ranks import mine
from reference import dense_loss
from torch import Tensor

from partialfc.config import CosFace, HeadConfig, Sgd
from partialfc.head import PartialFC, softmax


def in_float32(scale: float, near: float, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, embedding gradients and centre updates of one step, centres and embeddings of 50 classes in float32."""
    embeddings, weight, labels = float32_batch(near)
    head = PartialFC(50, 32, CosFace(scale=scale), optim=Sgd(momentum=0.0, weight_decay=0.0), device=device)
    owned = head.centers.owned
    centers = head.centers.tensors["centers"].copy_(weight[owned.start : owned.stop])
    local = mine(embeddings).to(device).requires_grad_()
    with mock.patch.object(softmax, "chunk_of", return_value=7):
        step = head.prepare(labels, 0)
        loss = head(local, step)
        loss.backward()
        head.update(step, 1.0)
    return loss.detach().cpu(), local.grad.cpu(), weight[owned.start : owned.stop] - centers.cpu()


def float32_batch(near: float) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [12, 32], `near` times their class centre and noise; centres [50, 32]; labels [12]."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 32, generator=generator)
    labels = torch.randint(50, (12,), generator=generator)
    return torch.randn(12, 32, generator=generator) + near * weight[labels], weight, labels


@pytest.mark.parametrize("scale", [8.0, 64.0, 128.0, 300.0])
@pytest.mark.parametrize("near", [0.0, 1.0, 30.0], ids=["untrained", "half trained", "trained"])
def test_float32_is_the_dense_head_in_double(ranks, device, scale, near):
    embeddings, weight, labels = (it.double() if it.is_floating_point() else it for it in float32_batch(near))
    embeddings.requires_grad_(), weight.requires_grad_()
    every = torch.ones(50, dtype=torch.bool)
    loss = dense_loss(embeddings, weight, labels, CosFace(scale=scale), active=every)
    expected = torch.autograd.grad(loss, [embeddings, weight])
    losses, gradients, steps = zip(*ranks.run(2, in_float32, scale, near, device), strict=True)
    assert losses[0] == losses[1]
    torch.testing.assert_close(losses[0].double(), loss.detach(), rtol=1e-5, atol=1e-6)
    for found, wanted in zip((torch.cat(gradients), torch.cat(steps)), expected, strict=True):
        torch.testing.assert_close(
            found.double(), wanted, rtol=0, atol=2e-4 * wanted.abs().max().item() + 1e-6
        )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_products_of_bfloat16_factors_are_near_and_leave_the_sums_in_float32(ranks, device, world_size):
    """A factor is off by 2^-9, a logit of scale 8 by 0.03: a loss of some 4 by about a hundredth."""
    full, lower = (ranks.run(world_size, with_products, kind, device) for kind in ("float32", "bfloat16"))
    for (loss, gradient, step), (near_loss, near_gradient, near_step) in zip(full, lower, strict=True):
        assert 0 < abs(near_loss - loss) < 0.02 * loss
        for exact, near in ((gradient, near_gradient), (step, near_step)):
            assert 0 < (near - exact).abs().max() < 0.02 * exact.abs().max()
            assert not torch.equal(near, near.bfloat16().float())


def with_products(kind: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    embeddings, _, labels = float32_batch(0.3)
    config = HeadConfig(sample_rate=0.5, products=kind)
    head = PartialFC(50, 32, CosFace(scale=8.0), config=config, optim=Sgd(momentum=0.0), device=device)
    before = head.centers.tensors["centers"].clone()
    local = mine(embeddings).to(device).requires_grad_()
    step = head.prepare(labels, 0)
    loss = head(local, step)
    loss.backward()
    head.update(step, 1e-3)
    return loss.detach().cpu(), local.grad.cpu(), (head.centers.tensors["centers"] - before).cpu()
