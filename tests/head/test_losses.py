"""Margins against their formulas in double precision, and at the ends of the angle's range."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.reference import ordered, target_logit
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import (
    AdaFace,
    AnyLoss,
    ArcFace,
    CombinedMargin,
    CosFace,
    CosineSoftmax,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    MagFace,
    SphereFace2,
    UniFace,
)
from partialfc.head import PartialFC, losses
from partialfc.head.kernels.torch_centers import angles
from partialfc.head.losses import MarginLoss, build_loss
from partialfc.head.losses.elasticface import assign_margins

EXACT = [
    CosineSoftmax(),
    ArcFace(),
    ArcFace(beyond_pi="wrap"),
    CosFace(),
    CombinedMargin(m1=1.35, m2=0.3, m3=0.1),
    CombinedMargin(m1=2.0, m2=0.3, m3=0.1, beyond_pi="wrap"),
    ElasticArcFace(),
    ElasticCosFace(),
]


def of_angle(margin: AnyLoss, angle: Tensor) -> tuple[Tensor, Tensor]:
    drawn = torch.full_like(angle, 0.4) if "Elastic" in type(margin).__name__ else None
    return build_loss(margin).logit_with_derivatives(angle, None, drawn)[:2]


@pytest.mark.parametrize("margin", EXACT, ids=repr)
def test_logit_and_slope_are_those_of_the_formula(margin):
    angle = torch.linspace(0.01, math.pi - 0.01, 999, dtype=torch.float64)
    cosine = angle.cos().requires_grad_()
    expected = target_logit(margin, cosine, torch.full_like(angle, 0.4))
    logit, slope = of_angle(margin, angle)
    torch.testing.assert_close(logit, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), cosine)[0])


@pytest.mark.parametrize(
    "margin", [ArcFace(), ArcFace(margin=1.5), CombinedMargin(m1=1.5, m2=1.0, m3=0.2)], ids=repr
)
def test_linear_beyond_pi_is_continuous_and_falls_with_the_angle(margin):
    logit, _ = of_angle(margin, torch.linspace(0, math.pi, 100_001, dtype=torch.float64))
    drops = -logit.diff()
    assert (drops > 0).all()
    assert drops.max() < 1e-4


def test_wrap_is_not_monotone():
    logit, _ = of_angle(ArcFace(beyond_pi="wrap"), torch.linspace(0, math.pi, 1001, dtype=torch.float64))
    assert (logit.diff() > 0).any()


@pytest.mark.parametrize(
    "margin", [ArcFace(gradient="detached"), CombinedMargin(m1=1.2, m2=0.1, gradient="detached")]
)
def test_detached_takes_the_slope_as_one(margin):
    _, slope = of_angle(margin, torch.linspace(0, math.pi, 11))
    assert (slope == 1).all()


def embedding_gradient(margin: AnyLoss, image: Tensor, center: Tensor) -> Tensor:
    """The gradient of the target logit by the raw embedding, through the angle as the head computes it."""
    image = image.requires_grad_()
    unit, center = normalize(image), normalize(center)
    _, slope = of_angle(margin, angles(unit.detach(), center))
    return torch.autograd.grad(unit, image, slope[:, None] * center)[0]


def at_angle(angle: float, count: int, width: int) -> tuple[Tensor, Tensor]:
    """Pairs of vectors at an angle, in double precision."""
    generator = torch.Generator().manual_seed(0)
    center = normalize(torch.randn(count, width, dtype=torch.float64, generator=generator))
    other = torch.randn(count, width, dtype=torch.float64, generator=generator)
    across = normalize(other - torch.linalg.vecdot(other, center)[:, None] * center)
    return center * math.cos(angle) + across * math.sin(angle), center


def test_an_angle_does_not_depend_on_its_position_in_the_batch():
    unit, center = torch.nn.functional.normalize(torch.randn(2, 7200, 16), dim=2)
    parts = [angles(unit[i : i + 5], center[i : i + 5]) for i in range(0, 7200, 5)]
    assert torch.equal(angles(unit, center), torch.cat(parts))


@pytest.mark.parametrize("angle", [1e-4, 1e-3, 0.1, 1.5, math.pi - 1e-3, math.pi - 1e-4])
@pytest.mark.parametrize(
    "margin", [ArcFace(beyond_pi="wrap"), ArcFace(), CombinedMargin(m1=1.3, m2=0.4)], ids=repr
)
def test_embedding_gradient_in_single_precision_near_the_ends(margin, angle):
    image, center = at_angle(angle, 64, 512)
    found = embedding_gradient(margin, image.float(), center.float()).double()
    m1, m2 = (margin.m1, margin.m2) if isinstance(margin, CombinedMargin) else (1.0, margin.margin)
    beyond = margin.beyond_pi == "linear" and m1 * angle + m2 > math.pi
    # d/dt of the logit is the length of its gradient on the sphere, towards the center.
    length = math.sin(angle) if beyond else m1 * math.sin(m1 * angle + m2)
    towards = normalize(center - image * math.cos(angle))
    error = torch.linalg.vector_norm(found - length * towards, dim=1)
    assert error.max() < 0.02 * max(abs(length), math.sin(angle))


@pytest.mark.parametrize("opposite", [1.0, -1.0])
@pytest.mark.parametrize("margin", [margin for margin in EXACT if "Elastic" not in repr(margin)], ids=repr)
def test_embedding_gradient_is_finite_and_small_at_the_ends(margin, opposite):
    center = torch.randn(256, 512)
    found = embedding_gradient(margin, center * opposite, center)
    assert torch.linalg.vector_norm(found, dim=1).max() < 2


@pytest.mark.parametrize("kind", [ElasticArcFace, ElasticCosFace])
def test_draws_are_normal_and_keyed_by_seed_and_step(kind):
    margin = kind(margin=0.4, sigma=0.02)
    drawn = build_loss(margin).draw(3, 5, 20_000)
    assert stats.kstest((drawn - 0.4) / 0.02, "norm").pvalue > 1e-3
    assert np.array_equal(drawn[:8], build_loss(margin).draw(3, 5, 8))
    assert not np.isin(drawn, build_loss(margin).draw(3, 6, 20_000)).any()
    assert not np.isin(drawn, build_loss(margin).draw(4, 5, 20_000)).any()
    assert build_loss(ArcFace()).draw(3, 5, 8) is None


def test_paper_gives_the_farthest_sample_the_largest_margin_and_released_does_not():
    generator = torch.Generator().manual_seed(0)
    cosine, drawn = torch.rand(2, 512, dtype=torch.float64, generator=generator)
    every = torch.ones(512, dtype=torch.bool)
    paper, released = (assign_margins(drawn, cosine, every, order) for order in ("paper", "released"))
    assert torch.equal(paper[cosine.argsort()], drawn.sort(descending=True).values)
    assert abs(np.corrcoef(released, cosine)[0, 1]) < 0.15  # in effect shuffled
    assert torch.equal(assign_margins(drawn, cosine, every, "none"), drawn)
    for order, found in (("paper", paper), ("released", released)):
        assert torch.equal(found, ordered(ElasticArcFace(order=order), cosine, drawn))


EVERY_LOSS: list[AnyLoss] = [
    CosineSoftmax(), *EXACT, AdaFace(), CurricularFace(), MagFace(), MagFace(beyond_pi="wrap"), UniFace(), SphereFace2(),
]  # fmt: skip


@pytest.mark.parametrize("margin", EVERY_LOSS, ids=repr)
def test_formulas_of_derivatives_equal_autograd(margin):
    loss = build_loss(margin).with_state({"norm_mean": torch.tensor(40.0), "norm_std": torch.tensor(20.0)})
    angle = torch.linspace(0.01, math.pi - 0.01, 997, dtype=torch.float64)
    norm = torch.linspace(1.0, 150.0, 997, dtype=torch.float64) if loss.needs_norms else None
    draws = torch.linspace(0.2, 0.7, 997, dtype=torch.float64)
    actual = loss.logit_with_derivatives(angle, norm, draws)
    expected = MarginLoss.logit_with_derivatives(loss, angle, norm, draws)
    assert not any(tensor is not None and tensor.requires_grad for tensor in (*actual, *expected))
    torch.testing.assert_close(actual.logit, loss.logit(angle, norm, draws))
    torch.testing.assert_close(actual.by_cosine, expected.by_cosine)
    assert (actual.by_norm is None) == (expected.by_norm is None) == (not loss.has_norm_gradient)
    if expected.by_norm is not None:
        torch.testing.assert_close(actual.by_norm, expected.by_norm)


def test_the_base_class_clamps_near_0_and_pi():
    angle = torch.tensor([0.0, 1e-6, math.pi])
    assert (
        MarginLoss.logit_with_derivatives(build_loss(ArcFace()), angle, None, None).by_cosine.isfinite().all()
    )


class OnlyLogit(MarginLoss):
    """CosFace without formulas of its derivatives."""

    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        return angle.cos() - 0.35


def stepped_by(loss: type[MarginLoss] | None) -> list[Tensor]:
    """Two steps of a head with CosFace, computed by `loss` instead."""
    with mock.patch.dict(losses._LOSSES, {CosFace: lambda _, value: loss(64.0)} if loss else {}):
        head = PartialFC(50, 8, CosFace(), seed=1)
        results = []
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            embeddings = torch.randn(12, 8, generator=generator).requires_grad_()
            head_step = head.prepare(torch.randint(50, (12,), generator=generator), step)
            loss_value = head(embeddings, head_step)
            loss_value.backward()
            head.update(head_step, 0.1)
            results += [loss_value.detach(), embeddings.grad, head.state_dict()["centers"].clone()]
    return results


def test_a_loss_needs_its_logit_only():
    for actual, expected in zip(stepped_by(OnlyLogit), stepped_by(None), strict=True):
        torch.testing.assert_close(actual, expected)
