"""UniFace and SphereFace2, sharded, are the formulas of their papers on one process, thresholds and their steps included."""

import math
from typing import Any

import pytest
import torch
from stateful import CLASSES, LABELS, LR, SEED, SKIPPED, WIDTH, active_classes, images, stepped
from torch import Tensor
from torch.nn.functional import normalize, softplus

from partialfc.config import CenterSGD, HeadConfig, SphereFace2, UniFace
from partialfc.head import PartialFC
from partialfc.head.losses import build_loss
from partialfc.head.storage.initial import init_centers
from partialfc.runtime import dtensors

Margin = UniFace | SphereFace2
SAMPLED = {"sample_rate": 0.4}
MARGINS: list[Margin] = [
    UniFace(scale=16.0, margin=0.3, negative_weight=0.5),
    SphereFace2(scale=10.0),
    SphereFace2(scale=30.0, positive_weight=0.5, power=1.0, margin=0.1),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    SAMPLED,
    SAMPLED | {"logits_budget": 0, "interclass_threshold": 0.3},
    SAMPLED | {"kernels": "triton", "logit_correction": "log_q"},
]
Steps = tuple[
    list[Tensor], list[Tensor], Tensor, Tensor
]  # losses, gradients by embeddings, centers, threshold


def terms(margin: Margin, own: Tensor, cosine: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Of the own classes [V] and of all of them [V, C], weighted."""
    s, m = margin.scale, margin.margin
    if isinstance(margin, UniFace):
        return softplus(threshold - s * (own - m)), margin.negative_weight * softplus(s * cosine - threshold)
    own, cosine = (2 * ((it + 1) / 2) ** margin.power - 1 for it in (own, cosine))
    positive, negative = softplus(threshold - s * (own - m)), softplus(s * (cosine + m) - threshold)
    return margin.loss_weight / s * margin.positive_weight * positive, margin.loss_weight / s * (
        1 - margin.positive_weight
    ) * negative


def dense_loss(
    margin: Margin, embeddings: Tensor, weight: Tensor, labels: Tensor, active: Tensor, threshold: Tensor,
    options: dict[str, Any],
) -> Tensor:  # fmt: skip
    valid = labels >= 0
    cosine = (normalize(embeddings) @ normalize(weight).T)[valid]
    positive, negative = terms(margin, cosine.gather(1, labels[valid][:, None])[:, 0], cosine, threshold)
    if options.get("logit_correction") == "log_q":
        drawn = active & ~torch.isin(torch.arange(CLASSES), labels)
        negative = torch.where(drawn, negative * CLASSES / round(0.4 * CLASSES), negative)
    counted = active.expand(len(cosine), -1).clone()
    counted[torch.arange(len(cosine)), labels[valid]] = False
    if limit := options.get("interclass_threshold"):
        counted &= cosine <= limit
    return (positive.sum() + negative[counted].sum()) / valid.sum()


def dense(margin: Margin, options: dict[str, Any]) -> Steps:
    weight = torch.empty(CLASSES, WIDTH, dtype=torch.float64)
    init_centers(weight, SEED, range(CLASSES), torch.device("cpu"))
    threshold = torch.tensor(first_threshold(margin, CLASSES * options.get("sample_rate", 1.0))).double()
    losses, gradients = [], []
    for number, labels in enumerate(map(torch.tensor, LABELS)):
        expected = [it.detach().requires_grad_() for it in (images(number), weight, threshold)]
        active = active_classes(number, labels, options.get("sample_rate", 1))
        embeddings, weight, threshold = expected
        loss = dense_loss(margin, embeddings, weight, labels, active, threshold, options)
        of_embeddings, of_weight, of_threshold = torch.autograd.grad(loss, expected)
        losses.append(loss.detach())
        gradients.append(of_embeddings)
        if number != SKIPPED:
            weight, threshold = weight - LR * of_weight, threshold - LR * of_threshold
    return losses, gradients, weight.detach(), threshold.detach()


def first_threshold(margin: Margin, classes: float) -> float:
    loss = build_loss(margin)
    loss.init_state(classes)
    return loss.state["threshold"].item()


def sharded(margin: Margin, options: dict[str, Any], device: str) -> Steps:
    head = PartialFC(
        CLASSES, WIDTH, margin, config=HeadConfig(**options), optim=CenterSGD(momentum=0, weight_decay=0),
        seed=SEED, dtype=torch.float64, device=device,
    )  # fmt: skip
    losses, gradients = stepped(head, device)
    state = head.state_dict()
    centers = dtensors.local_rows(state["centers"]) if head.group else state["centers"]
    return losses, gradients, centers.clone().cpu(), state["loss_threshold"].clone().cpu()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("margin", MARGINS, ids=["uniface", "sphereface2", "power 1"])
def test_sharded_is_dense(ranks, device, margin, options, world_size):
    losses, gradients, centers, threshold = dense(margin, options)
    found = ranks.run(world_size, sharded, margin, options, device)
    for of_rank, _, _, of_threshold in found:
        torch.testing.assert_close(of_rank, losses)
        torch.testing.assert_close(of_threshold, threshold)
    together = [torch.cat(parts) for parts in zip(*(of_images for _, of_images, *_ in found), strict=True)]
    torch.testing.assert_close(together, gradients, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(torch.cat([rows for *_, rows, _ in found]), centers)


@pytest.mark.parametrize("classes", [10.0, 1e4, 1e8])
def test_a_run_of_sphereface2_begins_where_the_threshold_has_no_gradient(classes):
    margin = SphereFace2()
    threshold = torch.tensor(first_threshold(margin, classes), dtype=torch.float64).requires_grad_()
    zero = torch.zeros(1, dtype=torch.float64)
    positive, negative = terms(margin, zero, zero[None], threshold)
    positive.sum().backward(retain_graph=True)
    of_own, threshold.grad = threshold.grad, None
    negative.sum().backward()
    assert (classes - 1) * -threshold.grad.item() == pytest.approx(of_own.item(), rel=1e-4)


def test_a_run_of_uniface_begins_with_the_threshold_of_its_authors():
    assert first_threshold(UniFace(), 1000 * 0.1) == pytest.approx(math.log(10 * 1000 * 0.1))
    head = PartialFC(1000, 4, UniFace(), config=HeadConfig(sample_rate=0.1))
    assert head.state_dict()["loss_threshold"].item() == pytest.approx(math.log(1000))


@pytest.mark.parametrize("margin", [UniFace(), SphereFace2(), SphereFace2(power=1.0)], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_where_an_image_lies_on_a_centre_or_opposite(margin, sign):
    head = PartialFC(3, 4, margin)
    with torch.no_grad():
        rows = torch.eye(4)[:3]
        head.load_state_dict(head.state_dict() | {"centers": rows})
    embeddings = (sign * rows[[0, 1]]).clone().requires_grad_()
    step = head.prepare(torch.tensor([0, 2]), 0)
    head(embeddings, step).backward()
    head.update(step, 0.1)
    assert embeddings.grad.isfinite().all() and head.state_dict()["centers"].isfinite().all()


def test_half_precision_products_and_sub_centres_go_with_them(ranks, device):
    options = SAMPLED | {"matmul_precision": "half", "subcenters": 2}
    (alone, *_), *_ = ranks.run(1, sharded, UniFace(), options, device)
    together, *_ = ranks.run(2, sharded, UniFace(), options, device)
    torch.testing.assert_close(together[0], alone, rtol=1e-4, atol=1e-4)
