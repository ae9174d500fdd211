"""A step of the head on CUDA tensors that hold no numbers: no host tensor stands among those of the device."""

from typing import Any
from unittest import mock

import pytest
import torch
from fake_cuda import DEVICE, Crossings, fake_cuda

from partialfc.config import AdaFace, AdamW, AnyMargin, CosFace, ElasticArcFace, HeadConfig, Sgd
from partialfc.head import PartialFC, centers

CLASSES, WIDTH, BATCH = 3000, 16, 64
OPTIONS = [
    {},
    {"sample_rate": 0.1},
    {"sample_rate": 0.1, "logits_budget": 0, "correction": "log_rate", "interclass_threshold": 0.5},
    {"sample_rate": 0.1, "unsampled": "decay"},
    {"sample_rate": 0.1, "centers": "bfloat16", "moments": "bfloat16"},
    {"sample_rate": 0.1, "optim": AdamW()},
]


def crossings(world_size: int, margin: AnyMargin, options: dict[str, Any]) -> list[str]:
    options = dict(options)
    optim = options.pop("optim", Sgd())
    labels = torch.arange(BATCH) * 37
    with fake_cuda(world_size) as fake, mock.patch.object(centers, "draw_initial"):
        with fake:
            head = PartialFC(CLASSES, WIDTH, margin, config=HeadConfig(**options), optim=optim, device=DEVICE)
        step = head.prepare(labels, 0)
        with fake, Crossings() as found:
            loss = head(torch.empty(BATCH // world_size, WIDTH, device=DEVICE, requires_grad=True), step)
            head.observe(step)
            step.add_gradient(torch.ones_like(loss))  # a backward cannot run on such tensors
            head.update(step, 0.1)
    assert found.launches
    return found.found


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "margin", [CosFace(), ElasticArcFace(order="paper", scale=128.0), AdaFace()], ids=repr
)
def test_no_host_tensor_among_those_of_the_device(margin, options, world_size):
    assert not crossings(world_size, margin, options)
