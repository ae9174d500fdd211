"""MagFace, sharded, is the formula of its paper on one process, and its gradient reaches the norms."""

import math

import pytest
import torch
from helpers.reference import target_logit
from stateful import State, assert_equal, dense, sharded
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partialfc.config import ElasticArcFace, MagFace
from partialfc.errors import InputError
from partialfc.head.losses import build_loss

OPTIONS = [{}, {"sample_rate": 0.4}, {"sample_rate": 0.4, "kernels": "triton"}]
MARGINS = [
    MagFace(scale=8.0),
    MagFace(scale=8.0, beyond_pi="wrap", norm_penalty_weight=0.0, margin_range=(0.2, 1.4)),
    MagFace(norm_range=(1.0, 60.0)),
]


def formula_of(margin: MagFace):
    def formula(
        embeddings: Tensor, weight: Tensor, labels: Tensor, active: Tensor, state: State
    ) -> tuple[Tensor, State]:
        valid = labels >= 0
        (least, largest), (low, high) = margin.norm_range, margin.margin_range
        norms = embeddings.norm(dim=1)[valid].clamp(least, largest)
        margins = low + (high - low) / (largest - least) * (norms - least)
        penalty = norms / largest**2 + 1 / norms
        cosine = normalize(embeddings)[valid] @ normalize(weight).T
        own = cosine.gather(1, labels[valid][:, None])[:, 0]
        target = target_logit(ElasticArcFace(beyond_pi=margin.beyond_pi), own, margins)
        logits = cosine.masked_fill(~active, -torch.inf).scatter(1, labels[valid][:, None], target[:, None])
        return cross_entropy(
            margin.scale * logits, labels[valid]
        ) + margin.norm_penalty_weight * penalty.mean(), state

    return formula


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_sharded_is_dense(ranks, device, margin, options, world_size):
    expected = dense(formula_of(margin), {}, options.get("sample_rate", 1), device)
    assert_equal(ranks.run(world_size, sharded, margin, options, device), expected)


@pytest.mark.parametrize("beyond_pi", ["linear", "wrap"])
def test_derivatives_by_the_norm_are_those_of_autograd(beyond_pi):
    settings = MagFace(beyond_pi=beyond_pi, margin_range=(0.1, 3.0))
    loss = build_loss(settings)
    norms = torch.linspace(1.0, 150.0, 97, dtype=torch.float64).requires_grad_()
    angle = torch.linspace(0.01, math.pi - 0.01, 97, dtype=torch.float64).flip(0)
    (expected,) = torch.autograd.grad(loss.logit(angle, norms, None).sum(), norms)
    by_norm = loss.logit_with_derivatives(angle, norms.detach(), None).by_norm
    torch.testing.assert_close(by_norm, expected)
    value, slope = loss.norm_penalty(norms)
    torch.testing.assert_close(slope.detach(), torch.autograd.grad(value.sum(), norms)[0])


def test_penalty_draws_norms_to_the_upper_bound():
    _, slope = build_loss(MagFace()).norm_penalty(torch.tensor([5.0, 10.0, 60.0, 109.9, 110.0, 200.0]))
    assert (slope[1:4] < 0).all() and slope[0] == slope[-1] == 0 and abs(slope[4]) < 1e-8


def test_bounds_that_are_none_are_refused():
    with pytest.raises(
        InputError, match=r"loss.norm_range: found \[110.0, 10.0\]; expected \[smallest, largest\]"
    ):
        MagFace(norm_range=(110.0, 10.0))
