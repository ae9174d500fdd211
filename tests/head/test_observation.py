"""A closer look at a step: the cosines are those of a dense matrix, and looking changes nothing."""

from typing import Any
from unittest import mock

import pytest
import torch
from helpers.ranks import mine
from helpers.reference import drawn_classes
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import SGD, CosFace, ElasticArcFace, HeadConfig
from partialfc.head import PartialFC

CLASSES, WIDTH, SEED = 11, 5, 7
LABELS = [[0, 6, 3, -1, 2, 2], [5, -1, 1, 4, 6, 0], [0, 0, 9, 9, -1, 6]]
OPTIONS = [
    {},
    {"sample_rate": 0.4},
    {"sample_rate": 0.4, "logits_budget": 0, "memory": "host"},
    {"sample_rate": 0.4, "unsampled": "decay"},
]


def images(step: int) -> Tensor:
    return torch.randn(6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def steps(options: dict[str, Any], device: str, look: bool) -> list[dict[str, Any]]:
    """Of each step: what was seen, and this rank's centers before it."""
    margin = ElasticArcFace(sigma=0.1, order="paper", scale=8.0)
    head = PartialFC(
        CLASSES,
        WIDTH,
        margin,
        config=HeadConfig(**options),
        optim=SGD(),
        seed=SEED,
        dtype=torch.float64,
        device=device,
    )
    found = []
    with mock.patch("partialfc.head.workspace.classes_per_chunk", return_value=2):  # classes at once
        for number, labels in enumerate(LABELS):
            step = head.prepare(torch.tensor(labels), number)
            loss = head(mine(images(number)).to(device).requires_grad_(), step)
            loss.backward()
            rows = step.seen("test").centers
            seen = {"centers": rows.gather(torch.arange(rows.num_active, device=device)).cpu()}
            if look:
                observed = head.observe(step)
                seen |= {"target": observed.target.cpu(), "nearest": observed.nearest.cpu()}
                seen |= {
                    "never_positive": int(observed.never_positive.sum()),
                    "margins": observed.margins.cpu(),
                }
            head.update(step, 0.3)
            found.append(seen | {"after": head.centers.tensors["centers"].clone().cpu()})
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cosines_are_those_of_a_dense_matrix(ranks, device, options, world_size):
    found = ranks.run(world_size, steps, options, device, True)
    unseen = set(range(CLASSES))
    for step, labels in enumerate(map(torch.tensor, LABELS)):
        centers = torch.cat([rank[step]["centers"] for rank in found])
        classes = torch.arange(CLASSES)
        if "sample_rate" in options:
            drawn = drawn_classes(CLASSES, options["sample_rate"], SEED, step)
            classes = torch.tensor(sorted({*drawn.tolist(), *labels[labels >= 0].tolist()}))
        cosine = normalize(images(step)) @ normalize(centers).T  # [6, S]
        own = labels[:, None] == classes
        target = torch.where(own, cosine, -torch.inf).amax(1)
        nearest = torch.where(own, -torch.inf, cosine).amax(1)
        unseen -= set(labels.tolist())
        for rank in found:
            torch.testing.assert_close(rank[step]["target"], target)
            torch.testing.assert_close(rank[step]["nearest"], nearest)
            assert rank[step]["never_positive"] == len(unseen) and len(rank[step]["margins"]) == 6
    assert len(unseen) == 3  # 7, 8 and 10


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_looking_changes_nothing(ranks, device, options):
    looked, blind = (ranks.run(2, steps, options, device, look) for look in (True, False))
    for one, other in zip(looked, blind, strict=True):
        assert all(torch.equal(a["after"], b["after"]) for a, b in zip(one, other, strict=True))


def one_class(device: str) -> tuple[float, float]:
    head = PartialFC(1, WIDTH, CosFace(), device=device, dtype=torch.float64)
    step = head.prepare(torch.zeros(6, dtype=torch.int64), 0)
    head(mine(images(0)).to(device).requires_grad_(), step)
    observed = head.observe(step)
    assert observed.margins is None
    return float(observed.target.max()), float(observed.nearest.max())


def test_one_class_has_no_nearest_other(ranks, device):
    for target, nearest in ranks.run(2, one_class, device):
        assert target > -1 and nearest == -torch.inf
