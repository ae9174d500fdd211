"""What the head computes in float32, and with factors of 16 bits, beside the dense head in double precision."""

from unittest import mock

import pytest
import torch
from helpers.ranks import mine
from helpers.reference import dense_loss
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import SGD, CosFace, HeadConfig
from partialfc.head import PartialFC
from partialfc.head.precision import MatmulPrecision


def in_float32(scale: float, near: float, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, embedding gradients and center updates of one step, centers and embeddings of 50 classes in float32."""
    embeddings, weight, labels = float32_batch(near)
    config, optim = HeadConfig(matmul_precision="float32"), SGD(momentum=0.0, weight_decay=0.0)
    head = PartialFC(50, 32, CosFace(scale=scale), config=config, optim=optim, device=device)
    owned = head.centers.local_classes
    centers = head.centers.tensors["centers"].copy_(weight[owned.start : owned.stop])
    local = mine(embeddings).to(device).requires_grad_()
    with mock.patch("partialfc.head.workspace.classes_per_chunk", return_value=7):
        step = head.prepare(labels, 0)
        loss = head(local, step)
        loss.backward()
        head.update(step, 1.0)
    return loss.detach().cpu(), local.grad.cpu(), weight[owned.start : owned.stop] - centers.cpu()


def float32_batch(near: float) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [12, 32], `near` times their class center and noise; centers [50, 32]; labels [12]."""
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


@pytest.mark.parametrize("budget", [4096, 0], ids=["kept", "computed twice"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_products_of_16_bit_factors_are_near_and_their_sums_in_float32(ranks, device, world_size, budget):
    """A logit of scale 64 is off by about 0.001; an exponential, and a row that it is multiplied with, by 2^-9."""
    full, lower = (ranks.run(world_size, with_products, kind, budget, device) for kind in ("float32", "half"))
    for (loss, gradient, step), (near_loss, near_gradient, near_step) in zip(full, lower, strict=True):
        assert 0 < abs(near_loss - loss) < 2e-4 * loss
        for exact, near in ((gradient, near_gradient), (step, near_step)):
            assert 0 < (near - exact).norm() < 4e-3 * exact.norm()
            assert not torch.equal(near, near.bfloat16().float())


@pytest.mark.parametrize("kind", ["auto", "tf32"])
def test_without_a_gpu_tf32_is_float32(ranks, kind):
    (loss, *others), (expected, *wanted) = (
        ranks.run(1, with_products, it, 4096, "cpu")[0] for it in (kind, "float32")
    )
    assert loss == expected and all(map(torch.equal, others, wanted))


def with_products(kind: str, budget: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    embeddings, _, labels = float32_batch(0.3)
    config = HeadConfig(sample_rate=0.5, matmul_precision=kind, logits_budget=budget)
    head = PartialFC(50, 32, CosFace(), config=config, optim=SGD(momentum=0.0), device=device)
    before = head.centers.tensors["centers"].clone()
    local = mine(embeddings).to(device).requires_grad_()
    step = head.prepare(labels, 0)
    loss = head(local, step)
    loss.backward()
    head.update(step, 1e-3)
    return loss.detach().cpu(), local.grad.cpu(), (head.centers.tensors["centers"] - before).cpu()


@pytest.mark.parametrize("near", [0.0, 0.3, 3.0], ids=["untrained", "half trained", "trained"])
def test_float16_logits_are_as_exact_as_tf32(near):
    """And eight times as exact as of bfloat16 factors."""
    embeddings, weight, _ = float32_batch(near)
    unit, scaled = normalize(weight), 64 * normalize(embeddings)
    exact = unit.double() @ scaled.double().T
    products = MatmulPrecision("half", torch.device("cpu"), torch.float32)
    found = products.mm(
        torch.empty(50, 12), unit.to(products.logits_dtype), scaled.to(products.logits_dtype).T
    )
    tf32 = in_tf32(unit).double() @ in_tf32(scaled).double().T
    bfloat16 = unit.bfloat16().double() @ scaled.bfloat16().double().T
    error, of_tf32, of_bfloat16 = ((it - exact).square().mean().sqrt() for it in (found, tf32, bfloat16))
    assert error < 1.1 * of_tf32 and 6 * error < of_bfloat16


def in_tf32(values: Tensor) -> Tensor:
    """Rounded to the 10 bits of mantissa that such a product takes."""
    return (values.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)
