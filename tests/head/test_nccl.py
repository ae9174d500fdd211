"""A head alone in a group of NCCL is the head without a group."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from partialfc.config import AdaFace, HeadConfig
from partialfc.head import PartialFC

pytestmark = pytest.mark.gpu


def stepped() -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and centers after a step."""
    head = PartialFC(500, 64, AdaFace(), config=HeadConfig(sample_rate=0.2), device="cuda:0")
    embeddings = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    step = head.prepare(torch.arange(32), 0)
    loss = head(embeddings, step)
    loss.backward()
    head.update(step, 0.1)
    return loss.detach(), embeddings.grad, head.centers.tensors["centers"]


def test_a_rank_alone_in_a_group_of_nccl_is_a_process_without_one():
    expected = stepped()
    dist.init_process_group(
        "nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda:0")
    )
    try:
        assert all(map(torch.equal, stepped(), expected))
    finally:
        dist.destroy_process_group()
