"""Forward and backward as CUDA graphs are those that are launched kernel by kernel, to the bit."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.runs import config_of
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from partialfc.backbones import build_backbone
from partialfc.config import IResNetTiny, ViTTiny
from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.training import cuda_graphs, microbatches, run
from partialfc.training.microbatches import MicroBatchRunner
from partialfc.training.replicas import GradientBuckets

BATCH, SIZE = 6, 32
NETWORKS = {
    "iresnet": IResNetTiny(width=8, depths=(1, 2), input_size=SIZE, embedding_size=16, dropout=0.3),
    "vit": ViTTiny(input_size=SIZE, patch_size=8, embedding_size=16, drop_path_rate=0.2, dropout=0.2),
}


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield comm.default_group()
    dist.destroy_process_group()


class Unrecorded:
    """Computes at once what graphs would replay: with the momenta of the time of recording, and without the host's counts."""

    def __init__(self, network: nn.Module, forward, parameters, inputs) -> None:
        self._forward, self._parameters = forward, parameters
        self._norms = [it for it in network.modules() if isinstance(it, nn.BatchNorm1d | nn.BatchNorm2d)]
        self._momenta = [it.momentum for it in self._norms]

    def forward(self, inputs: Tensor) -> Tensor:
        for norm, momentum in zip(self._norms, self._momenta, strict=True):
            norm.momentum = momentum
        counts = [it.num_batches_tracked.clone() for it in self._norms]
        self._outputs = self._forward(inputs)
        for norm, count in zip(self._norms, counts, strict=True):
            norm.num_batches_tracked.copy_(count)
        return self._outputs.detach()

    def backward(self, gradient: Tensor) -> None:
        cuda_graphs._add_gradients(self._outputs, self._parameters, gradient)


def warm_up(forward, parameters, inputs) -> None:
    for _ in range(3):
        forward(inputs)


def graphs_of(network: nn.Module, device: str) -> AbstractContextManager[Any]:
    """Those of a GPU, or their stand-in."""
    if device == "cuda":
        return nullcontext()
    instead = {"CUDAGraphNetwork": partial(Unrecorded, network), "warm_up": warm_up}
    return mock.patch.multiple(microbatches, **instead)


def stepped(network: nn.Module, group: dist.ProcessGroup, device: str, *, recorded: bool) -> list[Tensor]:
    """Outputs, gradients and buffers of four steps that move the parameters."""

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return network(images).float()

    gradients = GradientBuckets(network.parameters(), group)
    parts = MicroBatchRunner(
        network, forward, gradients, micro_batch_size=None, seed=3, rank=0, use_cuda_graphs=recorded
    )
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(4):
        images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).to(device)
        outputs = parts.forward(images, step)
        parts.backward(images, step, torch.randn(BATCH, 16, generator=generator).to(device))
        found.append(outputs.detach().clone())
        with torch.no_grad():
            for parameter in filter(lambda it: it.requires_grad, network.parameters()):
                found.append(parameter.grad.clone())
                parameter -= 0.01 * parameter.grad
    return found + [it.clone() for it in network.buffers()]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_network_gives_the_same_bits(group, device, name):
    """On a CPU with a stand-in, for what is done around the graphs."""
    results = []
    for recorded in (False, True):
        torch.manual_seed(0)
        network = build_backbone(NETWORKS[name]).to(device)
        with graphs_of(network, device):
            results.append(stepped(network, group, device, recorded=recorded))
    assert len(results[0]) == len(results[1]) and all(map(torch.equal, *results))


def test_a_network_that_is_frozen_first_is_recorded_when_it_moves(group, device):
    network = build_backbone(NETWORKS["iresnet"]).to(device)
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=device)
    parts = MicroBatchRunner(
        network, network, GradientBuckets(network.parameters(), group), micro_batch_size=None, seed=3, rank=0, use_cuda_graphs=True
    )  # fmt: skip
    before = [it.clone() for it in network.buffers()]
    parts.forward(images, 0, frozen=True)
    assert all(map(torch.equal, before, network.buffers()))
    with graphs_of(network, device):
        parts.forward(images, 1)
    assert not all(map(torch.equal, before, network.buffers()))


@pytest.mark.parametrize("name", ["gradient_checkpointing", "compile"])
def test_what_cannot_be_recorded_is_refused(name):
    with pytest.raises(InputError, match=f"backbone.cuda_graphs: incompatible with backbone.{name}: true"):
        IResNetTiny(cuda_graphs=True, **{name: True})


def test_micro_batches_are_refused_where_there_is_a_gpu(tmp_path):
    config = config_of(tmp_path, tmp_path, backbone={"name": "iresnet_tiny", "cuda_graphs": True}, train={"micro_batch_size": 2})  # fmt: skip
    there, here = (mock.Mock(device=torch.device(it), world_size=2) for it in ("cuda", "cpu"))
    images = config.train.global_batch_size // 2
    with pytest.raises(InputError, match=f"requires a rank's {images} images in one micro-batch; found train.micro_batch_size: 2"):  # fmt: skip
        run._uses_cuda_graphs(config, there)
    assert not run._uses_cuda_graphs(config, here)
