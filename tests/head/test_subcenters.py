"""Sub-centers: a sharded head with K centers a class is the formula on one process; only the nearest of a class moves."""

from typing import Any

import pytest
import torch
from helpers.reference import dense_loss, ordered, target_logit
from stateful import BATCH, CLASSES, LABELS, SEED, SKIPPED, WIDTH, active_classes, images, stepped
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partialfc.config import (
    AnyLoss,
    ArcFace,
    CenterAdamW,
    CenterSGD,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    FollowTeacher,
    HeadConfig,
    MagFace,
)
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.head.losses import build_loss
from partialfc.head.storage.initial import init_centers
from partialfc.runtime import dtensors

K, LR = 3, 0.3
SGD = CenterSGD(momentum=0.9, weight_decay=1e-2)
SAMPLED = {"sample_rate": 0.4}
CASES: dict[str, tuple[AnyLoss, dict[str, Any]]] = {
    "all": (ArcFace(scale=16.0), {}),
    "all, twice": (CosFace(scale=16.0), {"logits_budget": 0}),
    "sampled": (ElasticArcFace(scale=16.0, sigma=0.1, order="paper"), SAMPLED),
    "threshold, log_rate": (CosFace(scale=8.0), SAMPLED | {"logit_correction": "log_q", "interclass_threshold": 0.3}),
    "shifted": (CosFace(scale=100.0), SAMPLED),
    "host": (CosFace(scale=16.0), SAMPLED | {"memory": "host"}),
    "kernels": (ArcFace(scale=16.0), SAMPLED | {"kernels": "triton"}),
}  # fmt: skip
Steps = tuple[list[Tensor], list[Tensor], Tensor]  # losses, gradients by the embeddings, centers [C, K D]


def dense(margin: AnyLoss, options: dict[str, Any]) -> Steps:
    weight = torch.empty(CLASSES, K * WIDTH, dtype=torch.float64)
    init_centers(weight, SEED, range(CLASSES), torch.device("cpu"))
    momentum = torch.zeros_like(weight)
    losses, gradients = [], []
    for number, labels in enumerate(map(torch.tensor, LABELS)):
        embeddings, weight = images(number).requires_grad_(), weight.detach().requires_grad_()
        active = active_classes(number, labels, options.get("sample_rate", 1))
        loss = formula(embeddings, weight.view(CLASSES, K, WIDTH), labels, margin, active, number, options)
        of_embeddings, of_weight = torch.autograd.grad(loss, [embeddings, weight])
        losses.append(loss.detach())
        gradients.append(of_embeddings)
        if number != SKIPPED:
            step = of_weight + SGD.weight_decay * weight
            rows = active[:, None]
            momentum = torch.where(rows, SGD.momentum * momentum + step, momentum)
            weight = torch.where(rows, weight - LR * momentum, weight)
    return losses, gradients, weight.detach()


def formula(
    embeddings: Tensor, centers: Tensor, labels: Tensor, margin: AnyLoss, active: Tensor, number: int,
    options: dict[str, Any],
) -> Tensor:  # fmt: skip
    valid = labels >= 0
    unit, chosen = normalize(embeddings), labels[valid]
    cosine = torch.einsum("bd,ckd->bck", unit, normalize(centers, dim=2)).amax(dim=2)[valid]
    own = cosine.gather(1, chosen[:, None])[:, 0]
    drawn = build_loss(margin).draw(SEED, number, BATCH)
    margins = ordered(margin, own, None if drawn is None else torch.from_numpy(drawn)[valid])
    target = target_logit(margin, own, margins)
    in_batch = torch.zeros_like(active).index_fill_(0, chosen, True)
    correction = 0.0
    if options.get("logit_correction") == "log_q":
        correction = -torch.tensor(round(0.4 * CLASSES) / CLASSES).log().item()
    logits = margin.scale * cosine + torch.where(in_batch, 0.0, correction)
    logits = logits.masked_fill(~active, -torch.inf)
    if threshold := options.get("interclass_threshold"):
        logits = logits.masked_fill(cosine > threshold, -torch.inf)
    return cross_entropy(logits.scatter(1, chosen[:, None], margin.scale * target[:, None]), chosen)


def sharded(margin: AnyLoss, options: dict[str, Any], device: str, rule: Any = SGD) -> Steps:
    head = PartialFC(
        CLASSES, WIDTH, margin, config=HeadConfig(subcenters=K, **options), optim=rule, seed=SEED,
        dtype=torch.float64, device=device,
    )  # fmt: skip
    losses, gradients = stepped(head, device)
    centers = head.state_dict()["centers"]
    return losses, gradients, (dtensors.local_rows(centers) if head.group else centers).clone().cpu()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_sharded_is_dense(ranks, device, case, world_size):
    losses, gradients, centers = dense(*CASES[case])
    found = ranks.run(world_size, sharded, *CASES[case], device)
    for of_rank, _, _ in found:
        torch.testing.assert_close(of_rank, losses)
    together = [torch.cat(parts) for parts in zip(*(of_images for _, of_images, _ in found), strict=True)]
    torch.testing.assert_close(together, gradients, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(torch.cat([rows for *_, rows in found]), centers)


@pytest.mark.parametrize(
    ("margin", "options", "rule"),
    [
        (CurricularFace(scale=16.0), SAMPLED, SGD),
        (MagFace(scale=16.0), SAMPLED | {"matmul_precision": "half"}, SGD),
        (ArcFace(scale=16.0), SAMPLED | {"centers_dtype": "bfloat16"}, CenterAdamW()),
        (ArcFace(scale=16.0), SAMPLED | {"unsampled": "decay"}, SGD),
    ],
    ids=["state", "norms", "adamw", "decay"],
)  # fmt: skip
def test_other_losses_and_rows_are_the_same_at_any_world_size(ranks, device, margin, options, rule):
    (alone, _, centers), *_ = ranks.run(1, sharded, margin, options, device, rule)
    found = ranks.run(2, sharded, margin, options, device, rule)
    torch.testing.assert_close(found[0][0], alone)
    torch.testing.assert_close(torch.cat([rows for *_, rows in found]), centers)


def test_only_the_nearest_centre_of_a_class_moves(device):
    head = PartialFC(
        2, 4, ArcFace(), config=HeadConfig(subcenters=2), optim=CenterSGD(momentum=0, weight_decay=0), device=device
    )  # fmt: skip
    rows = torch.tensor([[1.0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1]], device=device)
    head.load_state_dict(head.state_dict() | {"centers": rows})
    step = head.prepare(torch.tensor([0]), 0)
    head(torch.tensor([[0.1, 0.9, 0.2, 0.3]], device=device, requires_grad=True), step).backward()
    observed = head.observe(step)
    assert observed.target.item() == pytest.approx(0.9 / 0.95**0.5, abs=1e-5)
    assert observed.nearest.item() == pytest.approx(0.3 / 0.95**0.5, abs=1e-5)
    head.update(step, 0.1)
    moved = (head.state_dict()["centers"] != rows).view(2, 2, 4).any(dim=2)
    assert moved.tolist() == [[False, True], [False, True]]


def test_one_centre_is_what_it_was():
    """And more than one, all alike, are as one."""
    embeddings, labels = images(0).float(), torch.tensor(LABELS[0])
    weight = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = dense_loss(embeddings, weight, labels, ArcFace(), active=torch.ones(CLASSES, dtype=torch.bool))
    for count in (1, 2):
        head = PartialFC(CLASSES, WIDTH, ArcFace(), config=HeadConfig(subcenters=count))
        head.load_state_dict(head.state_dict() | {"centers": weight.repeat(1, count)})
        with torch.no_grad():
            torch.testing.assert_close(head(embeddings, head.prepare(labels, 0)), expected)


def test_sub_centres_and_a_teacher_are_refused():
    with pytest.raises(
        InputError, match=r"head\.subcenters: 2; expected 1, as class centers follow a teacher"
    ):
        PartialFC(3, 4, ArcFace(), config=HeadConfig(subcenters=2), optim=FollowTeacher())
