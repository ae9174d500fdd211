"""AdaFace, sharded, is the formula of its paper on one process; its statistics are saved, and are of the global batch."""

import math

import msgspec
import pytest
import torch
from helpers.runs import assert_same_bits, config_of, curve, trained, whole
from stateful import State, assert_equal, dense, sharded
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partialfc.config import AdaFace
from partialfc.head.losses import build_loss

MARGIN = AdaFace(scale=8.0, ema_rate=0.3)


def formula(
    embeddings: Tensor, weight: Tensor, labels: Tensor, active: Tensor, state: State
) -> tuple[Tensor, State]:
    valid = labels >= 0
    norms = embeddings.detach().norm(dim=1)[valid].clamp(0.001, 100)
    if len(norms) > 1:
        seen = {"norm_mean": norms.mean(), "norm_std": norms.std()}
        state = {
            name: (1 - MARGIN.ema_rate) * old + MARGIN.ema_rate * seen[name] for name, old in state.items()
        }
    z = (MARGIN.h * (norms - state["norm_mean"]) / (state["norm_std"] + 1e-3)).clamp(-1, 1)
    cosine = normalize(embeddings)[valid] @ normalize(weight).T
    angle = cosine.gather(1, labels[valid][:, None])[:, 0].acos()
    target = (angle - MARGIN.margin * z).clamp(1e-3, math.pi - 1e-3).cos() - MARGIN.margin * (1 + z)
    logits = cosine.masked_fill(~active, -torch.inf).scatter(1, labels[valid][:, None], target[:, None])
    return cross_entropy(MARGIN.scale * logits, labels[valid]), state


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"sample_rate": 0.4}, {"sample_rate": 0.4, "kernels": "triton"}], ids=str
)
def test_sharded_is_dense(ranks, device, options, world_size):
    state = {
        name: torch.tensor(it, dtype=torch.float64) for name, it in (("norm_mean", 20.0), ("norm_std", 100.0))
    }
    expected = dense(formula, state, options.get("sample_rate", 1), device)
    assert_equal(ranks.run(world_size, sharded, MARGIN, options, device), expected)


def test_the_slope_is_the_derivative_and_0_where_the_angle_is_clipped():
    angle = torch.linspace(0.0011, math.pi - 0.0011, 999, dtype=torch.float64)
    for z in (-1.0, -0.2, 0.0, 0.7, 1.0):
        cosine = angle.cos().requires_grad_()
        moved = cosine.acos() - MARGIN.margin * z
        expected = moved.clamp(1e-3, math.pi - 1e-3).cos() - MARGIN.margin * (1 + z)
        loss = build_loss(MARGIN).with_state(
            {"norm_mean": torch.tensor(50.0), "norm_std": torch.tensor(10.0)}
        )
        norm = torch.full_like(angle, 50 + z * (10 + 1e-3) / MARGIN.h)
        logit, slope, _ = loss.logit_with_derivatives(angle, norm, None)
        torch.testing.assert_close(logit, expected.detach())
        torch.testing.assert_close(
            slope, torch.autograd.grad(expected.sum(), cosine)[0], rtol=1e-6, atol=1e-6
        )
        assert logit.max() <= loss.max_logit / MARGIN.scale


def test_a_run_resumes_to_the_bit_and_goes_on_at_another_world_size(ranks, pack, tmp_path):
    sections = {
        "train": {"global_batch_size": 24, "length": 14, "micro_batch_size": 4},
        "checkpoint": {"every": 5},
        "optim": {"name": "sgd", "lr": 0.002},
    }
    config = {
        name: msgspec.structs.replace(config_of(pack, tmp_path / name, **sections), loss=AdaFace(scale=16.0))
        for name in ("straight", "resumed", "moved")
    }
    straight = whole(ranks.run(2, trained, config["straight"]))
    assert ranks.run(2, trained, config["resumed"], 8) == [None] * 2
    assert_same_bits(whole(ranks.run(2, trained, config["resumed"])), straight)
    assert straight["loss_norm_mean"] != 20
    assert ranks.run(3, trained, config["moved"], 8) == [None] * 3
    ranks.run(1, trained, config["moved"])
    assert curve(tmp_path / "moved") == pytest.approx(curve(tmp_path / "straight"), rel=1e-3)
