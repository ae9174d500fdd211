"""AdaFace, sharded, is the formula of its paper on one process; its statistics are saved, and are of the global batch."""

import math

import msgspec
import pytest
import torch
from ranks import mine
from runs import assert_same_bits, config_of, curve, trained, whole
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partialfc.config import AdaFace, HeadConfig, Sgd
from partialfc.head import PartialFC, sampling
from partialfc.head.initial import draw_initial
from partialfc.head.losses import loss_of

CLASSES, WIDTH, BATCH, SEED, LR = 11, 5, 6, 7, 0.3
MARGIN = AdaFace(scale=8.0, rate=0.3)
SKIPPED = 2
LABELS = [[0, 6, 3, -1, 2, 2], [5, -1, 1, 4, 6, 0], [1, 2, 3, 4, 5, 6], [-1] * 5 + [3], [0, 9, 9, 10, -1, 1]]


def images(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    lengths = torch.tensor([[1e-5], [20.0], [300.0], [5.0], [60.0], [0.5]], dtype=torch.float64)
    return lengths * torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=generator)


def dense(sample_rate: float, device: str) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Losses and gradients by the embeddings of each step, centres and statistics after them."""
    weight = torch.empty(CLASSES, WIDTH, dtype=torch.float64)
    draw_initial(weight, SEED, range(CLASSES), torch.device(device))
    mean, std = torch.tensor(20.0, dtype=torch.float64), torch.tensor(100.0, dtype=torch.float64)
    losses, gradients = [], []
    for number, labels in enumerate(map(torch.tensor, LABELS)):
        embeddings, valid = images(number).requires_grad_(), labels >= 0
        weight.requires_grad_()
        norms = embeddings.detach().norm(dim=1)[valid].clamp(0.001, 100)
        step_mean, step_std = mean, std
        if len(norms) > 1:
            step_mean = (1 - MARGIN.rate) * mean + MARGIN.rate * norms.mean()
            step_std = (1 - MARGIN.rate) * std + MARGIN.rate * norms.std()
        z = (MARGIN.h * (norms - step_mean) / (step_std + 1e-3)).clamp(-1, 1)
        cosine = normalize(embeddings)[valid] @ normalize(weight).T
        angle = cosine.gather(1, labels[valid][:, None])[:, 0].acos()
        target = (angle - MARGIN.margin * z).clamp(1e-3, math.pi - 1e-3).cos() - MARGIN.margin * (1 + z)
        active = active_classes(number, labels, sample_rate)
        logits = cosine.masked_fill(~active, -torch.inf).scatter(1, labels[valid][:, None], target[:, None])
        loss = cross_entropy(MARGIN.scale * logits, labels[valid])
        d_embeddings, d_weight = torch.autograd.grad(loss, [embeddings, weight])
        losses.append(loss.detach())
        gradients.append(d_embeddings)
        if number != SKIPPED:
            weight, mean, std = (weight - LR * d_weight).detach(), step_mean, step_std
    return losses, gradients, weight.detach(), torch.stack([mean, std])


def active_classes(number: int, labels: Tensor, sample_rate: float) -> Tensor:
    if sample_rate == 1:
        return torch.ones(CLASSES, dtype=torch.bool)
    active = torch.zeros(CLASSES, dtype=torch.bool)
    active[torch.from_numpy(sampling.sampled(CLASSES, sample_rate, SEED, number, range(CLASSES)))] = True
    active[labels[labels >= 0]] = True
    return active


def sharded(sample_rate: float, device: str) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    head = PartialFC(
        CLASSES,
        WIDTH,
        MARGIN,
        config=HeadConfig(sample_rate=sample_rate),
        optim=Sgd(momentum=0.0, weight_decay=0.0),
        seed=SEED,
        dtype=torch.float64,
        device=device,
    )
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
    state = head.state_dict()
    statistics = torch.stack([state["loss_norm_mean"], state["loss_norm_std"]]).cpu()
    return losses, gradients, head.centers.tensors["centers"].cpu(), statistics


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("sample_rate", [1, 0.4])
def test_sharded_is_dense(ranks, device, sample_rate, world_size):
    losses, gradients, centers, statistics = dense(sample_rate, device)
    results = ranks.run(world_size, sharded, sample_rate, device)
    for rank_losses, _, _, rank_statistics in results:
        torch.testing.assert_close(rank_losses, losses)
        torch.testing.assert_close(rank_statistics, statistics)
    found = [torch.cat(parts) for parts in zip(*(gradients for _, gradients, *_ in results), strict=True)]
    torch.testing.assert_close(found, gradients, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.cat([rows for *_, rows, _ in results]), centers, rtol=1e-6, atol=1e-9)


def test_the_slope_is_the_derivative_and_0_where_the_angle_is_clipped():
    angle = torch.linspace(0.0011, math.pi - 0.0011, 999, dtype=torch.float64)
    for z in (-1.0, -0.2, 0.0, 0.7, 1.0):
        cosine = angle.cos().requires_grad_()
        moved = cosine.acos() - MARGIN.margin * z
        expected = moved.clamp(1e-3, math.pi - 1e-3).cos() - MARGIN.margin * (1 + z)
        logit, slope = loss_of(MARGIN).targets(angle, torch.full_like(angle, z))
        torch.testing.assert_close(logit, expected.detach())
        torch.testing.assert_close(
            slope, torch.autograd.grad(expected.sum(), cosine)[0], rtol=1e-6, atol=1e-6
        )
        assert logit.max() <= loss_of(MARGIN).max_logit / MARGIN.scale


def test_a_run_resumes_to_the_bit_and_goes_on_at_another_world_size(ranks, pack, tmp_path):
    sections = {
        "train": {"batch": 24, "length": 14, "micro_batch": 4},
        "checkpoint": {"every": 5},
        "optim": {"name": "sgd", "lr": 0.002},
    }
    config = {
        name: msgspec.structs.replace(
            config_of(pack, tmp_path / name, **sections), margin=AdaFace(scale=16.0)
        )
        for name in ("straight", "resumed", "moved")
    }
    straight = whole(ranks.run(2, trained, config["straight"]))
    assert ranks.run(2, trained, config["resumed"], 8) == [None] * 2
    assert_same_bits(whole(ranks.run(2, trained, config["resumed"])), straight)
    assert straight["loss_norm_mean"] != 20
    assert ranks.run(3, trained, config["moved"], 8) == [None] * 3
    ranks.run(1, trained, config["moved"])
    assert curve(tmp_path / "moved") == pytest.approx(curve(tmp_path / "straight"), rel=1e-3)
