"""What students learn image by image: the mean over the batch, and its gradient, whatever the number of ranks."""

import msgspec
import pytest
import torch
from helpers.ranks import mine
from helpers.runs import config_of
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import DistillationConfig
from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.training.distillation_loss import cosine_distillation_loss

BATCH, WIDTH = 12, 5


def images(seed: int) -> Tensor:
    return torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def taught() -> Tensor:
    """Two images count for nothing."""
    teacher = normalize(images(1))
    teacher[[3, 11]] = 0
    return teacher


def of_rank() -> tuple[Tensor, Tensor]:
    local = mine(images(0)).requires_grad_()
    loss = cosine_distillation_loss(local, mine(taught()), BATCH, comm.default_group())
    loss.backward()
    return loss.detach(), local.grad


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_are_one_process(ranks, world_size):
    student, teacher = images(0).requires_grad_(), taught()
    counted = teacher.any(dim=1)
    expected = (1 - torch.cosine_similarity(student, teacher))[counted].sum() / BATCH
    expected.backward()
    found = ranks.run(world_size, of_rank)
    for loss, _ in found:
        torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), student.grad)
    assert not student.grad[~counted].any()


def test_without_a_teacher_it_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"distillation\.cosine_weight: requires distillation.teacher_embeddings"
    ):
        DistillationConfig(cosine_weight=1.0)
    with pytest.raises(
        msgspec.ValidationError,
        match=r"distillation\.cosine_weight: requires distillation.teacher_embeddings",
    ):
        config_of(tmp_path, tmp_path, distillation={"cosine_weight": 1.0})
