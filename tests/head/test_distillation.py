"""Class centers that follow a teacher: a sharded head moves them as a loop over images does on one process."""

from typing import Any

import pytest
import torch
from helpers.ranks import mine
from helpers.reference import dense_loss
from stateful import BATCH, CLASSES, LABELS, SEED, SKIPPED, WIDTH, active_classes, images
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from partialfc.config import ArcFace, CurricularFace, FollowTeacher, HeadConfig
from partialfc.head import PartialFC
from partialfc.head.storage.initial import init_centers
from partialfc.runtime import dtensors

MARGIN = ArcFace(margin=0.45, scale=16.0)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"sample_rate": 0.4},
    {"sample_rate": 0.4, "memory": "host"},
    {"sample_rate": 0.4, "kernels": "triton"},
]
# Losses, and the L2-normalized centers [C, D] after all steps, or this rank's [n, D].
Moved = tuple[list[Tensor], Tensor]


def taught(number: int) -> Tensor:
    """The teacher's embeddings [B, D] of a step's images; some are the student's own."""
    drawn = torch.randn(
        BATCH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + number)
    )
    drawn[::2] = images(number)[::2] + 0.1 * drawn[::2]
    return drawn


def dense(sample_rate: float) -> Moved:
    weight = torch.empty(CLASSES, WIDTH, dtype=torch.float64)
    init_centers(weight, SEED, range(CLASSES), torch.device("cpu"))
    losses = []
    for number, labels in enumerate(map(torch.tensor, LABELS)):
        student, teacher = images(number), taught(number)
        active = active_classes(number, labels, sample_rate)
        losses.append(dense_loss(student, weight, labels, MARGIN, active=active))
        before = normalize(weight)
        for label in set(labels.tolist()) - {-1} if number != SKIPPED else ():
            moved = []
            for image in torch.nonzero(labels == label)[:, 0].tolist():
                near = cosine_similarity(before[label], teacher[image], dim=0).clip(1e-6, 1)
                alpha = (cosine_similarity(student[image], teacher[image], dim=0) * near).clip(1e-6, 1)
                moved.append(alpha * before[label] + (1 - alpha) * normalize(teacher[image], dim=0))
            weight[label] = torch.stack(moved).mean(dim=0)
    return losses, normalize(weight)


def sharded(options: dict[str, Any], device: str, margin: Any = MARGIN) -> Moved:
    head = PartialFC(
        CLASSES, WIDTH, margin, config=HeadConfig(**options), optim=FollowTeacher(), seed=SEED,
        dtype=torch.float64, device=device,
    )  # fmt: skip
    losses = []
    for number, labels in enumerate(map(torch.tensor, LABELS)):
        step = head.prepare(labels, number)
        loss = head(mine(images(number)).to(device).requires_grad_(), step)
        loss.backward()
        finite = torch.tensor(number != SKIPPED, device=device)
        head.update(step, 0.0, finite, teacher=mine(taught(number)).to(device))
        losses.append(loss.detach().cpu())
    centers = head.state_dict()["centers"]
    return losses, normalize(dtensors.local_rows(centers) if head.group else centers).cpu()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sharded_is_dense(ranks, device, options, world_size):
    losses, centers = dense(options.get("sample_rate", 1))
    found = ranks.run(world_size, sharded, options, device)
    for of_rank, _ in found:
        torch.testing.assert_close(of_rank, losses)
    torch.testing.assert_close(torch.cat([rows for _, rows in found]).double(), centers)


@pytest.mark.parametrize(
    "options", [{"centers_dtype": "bfloat16"}, {"sample_rate": 0.4, "centers_dtype": "bfloat16"}], ids=str
)
def test_rows_in_bfloat16_are_the_same_at_any_world_size(ranks, device, options):
    (_, alone), *_ = ranks.run(1, sharded, options, device)
    together = torch.cat([rows for _, rows in ranks.run(2, sharded, options, device)])
    assert torch.equal(alone, together)
    _, exact = dense(options.get("sample_rate", 1))
    assert cosine_similarity(alone.double(), exact).min() > 0.9999


def test_a_centre_comes_to_its_teacher_and_stays_where_the_student_agrees(device):
    head = PartialFC(2, 4, CurricularFace(), optim=FollowTeacher(), device=device)
    teacher = torch.eye(4, device=device)[:1]
    for number, student in enumerate((-teacher, teacher)):
        step = head.prepare(torch.tensor([1]), number)
        head(student.clone().requires_grad_(), step).backward()
        before = head.state_dict()["centers"].clone()
        head.update(step, 0.1, teacher=3 * teacher)
        torch.testing.assert_close(head.state_dict()["centers"][1], teacher[0], atol=2e-6, rtol=0)
        assert torch.equal(head.state_dict()["centers"][0], before[0])
    assert head.state_dict()["loss_level"] != 0  # of the target cosines: the loss has seen the batches


@pytest.mark.parametrize(
    ("optim", "teacher", "message"),
    [
        (FollowTeacher(), None, "teacher: expected embeddings"),
        (
            FollowTeacher(),
            torch.ones(2, 5),
            r"teacher: expected floats \[2, 4\] on cpu, got float32 \[2, 5\] on cpu",
        ),
        (FollowTeacher(), torch.ones(2, 4, dtype=torch.int64), r"got int64 \[2, 4\]"),
        (None, torch.ones(2, 4), r"teacher: expected None without optim=FollowTeacher\(\), got embeddings"),
    ],
)
def test_what_is_no_teacher_is_refused_and_may_be_mended(optim, teacher, message):
    head = PartialFC(3, 4, MARGIN, optim=optim)
    step = head.prepare(torch.tensor([0, 1]), 0)
    head(torch.ones(2, 4, requires_grad=True), step).backward()
    with pytest.raises(ValueError, match=message):
        head.update(step, 0.1, teacher=teacher)
    head.update(step, 0.1, teacher=torch.ones(2, 4) if optim else None)
