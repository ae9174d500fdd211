"""The sharded head is the dense one: loss, gradients and optimizer steps, for every margin and option."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.ranks import mine
from helpers.reference import dense_loss, drawn_classes
from torch import Tensor

from partialfc.config import (
    SGD,
    AdaFace,
    AnyLoss,
    ArcFace,
    CenterAdamW,
    CombinedMargin,
    CosFace,
    CosineSoftmax,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    HeadConfig,
    MagFace,
)
from partialfc.head import PartialFC
from partialfc.head.losses import build_loss
from partialfc.head.storage.initial import init_centers
from partialfc.head.workspace import classes_per_chunk
from partialfc.runtime import comm

WIDTH, RATE, MOMENTUM, DECAY, SEED = 5, 0.3, 0.9, 5e-3, 7
OPTIM = SGD(momentum=MOMENTUM, weight_decay=DECAY)


@dataclass
class Case:
    margin: AnyLoss
    num_classes: int = 7
    labels: list[list[int]] = field(default_factory=lambda: [[0, 6, 3, -1, 2, 2], [5, -1, 1, 4, 6, 0]])
    options: dict[str, Any] = field(default_factory=dict)
    chunk: int = 2  # classes worked on at once

    def embeddings(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = len(self.labels[0]), WIDTH
        return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in self.labels]


ORDERS = [
    kind(order=order, sigma=0.3, scale=8.0)
    for kind in (ElasticArcFace, ElasticCosFace)
    for order in ("paper", "released")
]
MARGINS = [
    CosineSoftmax(scale=8.0),
    CosineSoftmax(scale=300.0),
    ArcFace(),
    ArcFace(gradient="detached", scale=8.0),
    ArcFace(margin=1.5, beyond_pi="wrap", scale=8.0),
    ArcFace(margin=1.5, beyond_pi="linear", scale=8.0),
    CosFace(),
    CombinedMargin(m1=1.2, m2=0.3, m3=0.2, scale=8.0),
    CombinedMargin(m1=1.35, m2=1.0, m3=0.1, beyond_pi="wrap", scale=8.0),
    CombinedMargin(m1=1.35, m2=1.0, m3=0.1, gradient="detached", scale=8.0),
    CombinedMargin(m3=0.4, scale=8.0),
    ElasticArcFace(sigma=0.2, scale=8.0),
    ElasticArcFace(sigma=0.2, scale=8.0, gradient="detached", beyond_pi="wrap"),
    ElasticCosFace(sigma=0.2, scale=8.0),
    *ORDERS,
]
OPTIONS = [
    {},
    {"interclass_threshold": 0.2},
    {"sample_rate": 0.5},
    {"sample_rate": 0.5, "logit_correction": "log_q"},
    {"sample_rate": 0.5, "logit_correction": "log_q", "interclass_threshold": 0.2},
    {"sample_rate": 1e-9},
    {"logits_budget": 0},
    {"sample_rate": 0.5, "logits_budget": 0, "memory": "host"},
    {"kernels": "triton"},
    {"kernels": "triton", "sample_rate": 0.5, "logit_correction": "log_q", "interclass_threshold": 0.2},
    {"kernels": "triton", "sample_rate": 0.5, "logits_budget": 0, "memory": "host"},
]
BATCHES = {
    "a rank without targets": ([[0, 1, 0, 1, 0, 1]], 7),
    "a rank without classes": ([[0, 1, 1, 0, 0, 1]], 2),
    "one class": ([[0, 0, -1, 0, 0, 0]], 1),
    "a padded last batch": ([[4, 2, -1, -1, -1, -1], [-1] * 6, [1, 2, 3, 4, 5, 6]], 7),
    "one image a rank, and one of none": ([[3], [-1]], 7),
}


def dense(case: Case, device: str) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Losses, embedding gradients, and the centers and momentum after the steps."""
    weight = torch.empty(case.num_classes, WIDTH, dtype=torch.float64)
    init_centers(weight, SEED, range(case.num_classes), torch.device(device))
    weight.requires_grad_()
    momentum = torch.zeros_like(weight)
    losses, gradients = [], []
    for step, labels in enumerate(map(torch.tensor, case.labels)):
        embeddings = case.embeddings()[step].requires_grad_()
        active, logit_correction = sampled(case, labels, step)
        drawn = build_loss(case.margin).draw(SEED, step, len(labels))
        drawn = None if drawn is None else torch.from_numpy(drawn)
        loss = dense_loss(
            embeddings,
            weight,
            labels,
            case.margin,
            active=active,
            drawn=drawn,
            logit_correction=logit_correction,
            interclass_threshold=case.options.get("interclass_threshold", 0.0),
        )
        d_embeddings, d_weight = torch.autograd.grad(loss, [embeddings, weight], materialize_grads=True)
        losses.append(loss.detach())
        gradients.append(d_embeddings)
        with torch.no_grad():  # torch.optim.SGD's arithmetic, on the active rows
            momentum[active] = MOMENTUM * momentum[active] + d_weight[active] + DECAY * weight[active]
            weight[active] -= RATE * momentum[active]
    return losses, gradients, weight.detach(), momentum


def sampled(case: Case, labels: Tensor, step: int) -> tuple[Tensor, float]:
    active = torch.zeros(case.num_classes, dtype=torch.bool)
    rate = case.options.get("sample_rate", 1.0)
    if rate == 1.0:
        return ~active, 0.0
    drawn = drawn_classes(case.num_classes, rate, SEED, step)
    active[torch.from_numpy(drawn)] = True
    active[labels[labels >= 0]] = True
    share = max(1, round(rate * case.num_classes)) / case.num_classes
    return active, -math.log(share) if "logit_correction" in case.options else 0.0


def sharded(
    case: Case, device: str, loss_scale: float = 1.0
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """The same on this rank: its images' gradients, its rows."""
    head = PartialFC(
        case.num_classes,
        WIDTH,
        case.margin,
        config=HeadConfig(**case.options),
        optim=OPTIM,
        seed=SEED,
        dtype=torch.float64,
        device=device,
    )
    losses, gradients = [], []
    for number, (embeddings, labels) in enumerate(zip(case.embeddings(), case.labels, strict=True)):
        local = mine(embeddings).to(device).requires_grad_()
        with mock.patch("partialfc.head.workspace.classes_per_chunk", return_value=case.chunk):
            step = head.prepare(torch.tensor(labels), number)
            loss = head(local, step)
            (loss * loss_scale).backward()
            head.update(step, RATE, torch.ones((), dtype=torch.bool, device=device), loss_scale)
        losses.append(loss.detach().cpu())
        gradients.append((local.grad / loss_scale).cpu())
    rows = head.centers.tensors
    return losses, gradients, rows["centers"].cpu(), rows["momentum"].cpu()


def assert_same(ranks, case: Case, world_size: int, device: str, **more: float) -> None:
    losses, gradients, weight, momentum = dense(case, device)
    results = ranks.run(world_size, sharded, case, device, *more.values())
    for rank_losses, *_ in results:
        torch.testing.assert_close(rank_losses, losses)
    of_ranks = [torch.cat(parts) for parts in zip(*(gradients for _, gradients, *_ in results), strict=True)]
    torch.testing.assert_close(of_ranks, gradients, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.cat([rows for _, _, rows, _ in results]), weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.cat([rows for *_, rows in results]), momentum, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_sharded_is_dense_for_every_margin(ranks, device, margin, world_size):
    assert_same(ranks, Case(margin), world_size, device)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_sharded_is_dense_for_every_option(ranks, device, options, world_size):
    """With an order, the one thing that a margin wants of the other ranks."""
    assert_same(ranks, Case(ORDERS[0], options=options), world_size, device)


@pytest.mark.parametrize(("place", "margin"), list(enumerate(MARGINS)), ids=repr)
def test_sharded_is_dense_for_margins_and_options_in_turn(ranks, device, place, margin):
    """A margin changes targets alone, options the negatives: their pairs need not all be tried."""
    assert_same(ranks, Case(margin, options=OPTIONS[1 + place % (len(OPTIONS) - 1)]), 2, device)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sharded_is_dense_whatever_the_chunks(ranks, device, options, chunk):
    """With a scale that makes the softmax look for its maximum, chunk by chunk."""
    assert_same(ranks, Case(CosineSoftmax(scale=300.0), options=options, chunk=chunk), 2, device)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("margin", [CosFace(), ORDERS[1]], ids=repr)
@pytest.mark.parametrize("name", [name for name in BATCHES if not name.startswith("one image")])
def test_sharded_is_dense_for_unusual_batches(ranks, device, name, margin, world_size):
    labels, num_classes = BATCHES[name]
    assert_same(ranks, Case(margin, num_classes, labels), world_size, device)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sharded_is_dense_with_one_image_a_rank(ranks, device, world_size):
    case = Case(
        ElasticArcFace(order="paper", scale=8.0), labels=[[3, 0, 6][:world_size], [-1, 5, 2][:world_size]]
    )
    assert_same(ranks, case, world_size, device)


def test_a_loss_scale_changes_neither_loss_nor_rows(ranks, device):
    assert_same(ranks, Case(ArcFace(), options={"sample_rate": 0.5}), 2, device, loss_scale=1024.0)


@pytest.mark.parametrize(("label", "found"), [(7, "got 7"), (-2, "got -2")])
def test_a_label_that_is_no_class_is_refused(ranks, label, found):
    with pytest.raises(
        AssertionError,
        match=f"image 1 of the batch: expected a label from 0 to 6, or -1 to ignore it, {found}",
    ):
        ranks.run(1, prepare_only, [0, label])


def prepare_only(labels: list[int]) -> None:
    PartialFC(7, WIDTH, CosFace()).prepare(torch.tensor(labels), 0)


def step_that_is_not_finite(options: dict[str, Any], device: str) -> bool:
    head = PartialFC(7, WIDTH, ArcFace(), config=HeadConfig(sample_rate=0.5, **options), device=device)
    before = [it.clone() for it in head.centers.tensors.values()]
    embeddings = torch.full((2, WIDTH), torch.nan, device=device, requires_grad=True)
    step = head.prepare(torch.tensor([1, 2, 3, 4]), 0)
    head(embeddings, step).backward()
    head.update(step, RATE, torch.tensor(False, device=device))
    return all(map(torch.equal, before, head.centers.tensors.values()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logits_budget": 0},
        {"memory": "host"},
        {"centers_dtype": "bfloat16"},
        {"kernels": "triton", "centers_dtype": "bfloat16"},
        {"kernels": "triton", "optim": CenterAdamW()},
    ],
    ids=str,
)
def test_a_step_that_is_not_finite_changes_no_row(ranks, device, options):
    assert ranks.run(2, step_that_is_not_finite, options, device) == [True, True]


COLLECTIVES = [
    (dist, "all_reduce"),
    (dist, "barrier"),
    (dist, "broadcast"),
    (dist, "all_gather_object"),
    (comm, "_all_gather"),
    (comm, "_reduce_scatter"),
]


def count_collectives(margin: AnyLoss) -> tuple[int, int, int]:
    """Collectives of the head's prepare, of its forward, and of its backward and update."""
    head = PartialFC(7, WIDTH, margin, config=HeadConfig(sample_rate=0.5))
    embeddings = torch.randn(3, WIDTH, requires_grad=True)
    with ExitStack() as stack:
        spies = [stack.enter_context(mock.patch.object(*it, wraps=getattr(*it))) for it in COLLECTIVES]
        step = head.prepare(torch.tensor([0, 1, 2, 3, 4, 5]), 0)
        prepared = sum(spy.call_count for spy in spies)
        loss = head(embeddings, step)
        forward = sum(spy.call_count for spy in spies) - prepared
        loss.backward()
        head.update(step, RATE)
        return prepared, forward, sum(spy.call_count for spy in spies) - prepared - forward


@pytest.mark.parametrize("margin", [*MARGINS, AdaFace(), CurricularFace(), MagFace()], ids=repr)
def test_collectives_of_a_step(ranks, margin):
    all_cosines = getattr(margin, "order", "none") != "none" or isinstance(margin, CurricularFace)
    assert ranks.run(2, count_collectives, margin) == [(0, 3 if all_cosines else 2, 1)] * 2


def test_a_chunk_is_bounded_by_its_rows_and_by_its_logits():
    assert classes_per_chunk(512, 128, "cpu", 4) == 512
    assert classes_per_chunk(512, 1 << 20, "cpu", 4) == 16
    assert classes_per_chunk(512, 65536, "cuda", 4) == 2048
    assert classes_per_chunk(1 << 30, 1 << 30, "cuda", 4) == 1
