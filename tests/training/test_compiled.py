"""backbone.compile: a compiled network trains as the same network does otherwise, and no block is left out."""

import shutil
from functools import partialmethod
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from partialfc.backbones import build_backbone
from partialfc.config import IResNetTiny
from partialfc.runtime import comm
from partialfc.training.microbatches import MicroBatchRunner
from partialfc.training.replicas import GradientBuckets, RunningStats


def two_steps(compile: bool) -> dict[str, Tensor]:
    """The gradients of the second of two steps, and the running statistics after it."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    torch.manual_seed(0)
    settings = IResNetTiny(width=4, depths=(1, 1), input_size=16, embedding_size=6, compile=compile)
    module = build_backbone(settings)
    RunningStats(module)
    gradients = GradientBuckets(module.parameters(), dist_ctx.group)
    micro_batches = MicroBatchRunner(module, module, gradients, micro_batch_size=None, seed=3, rank=0)
    images, gradient = torch.randn(5, 3, 16, 16), torch.randn(5, 6)
    # Else half of the time goes to trying out which instructions the processor has.
    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
        for step in range(2):
            micro_batches.forward(images, step)
            micro_batches.backward(images, step, gradient)
    return {name: it.grad for name, it in module.named_parameters()} | dict(module.named_buffers())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's own, while it compiles
def test_a_compiled_network_takes_the_same_steps(ranks):
    found, expected = ranks.run(1, two_steps, True)[0], ranks.run(1, two_steps, False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch's own, while it compiles
def test_all_blocks_are_compiled_for_evaluation_and_training():
    compiled_by = partialmethod(nn.Module.compile, backend="eager")  # torch's, which needs no C++ compiler
    with mock.patch.object(nn.Module, "compile", compiled_by):
        backbone = build_backbone(IResNetTiny(width=4, depths=(2, 2, 2), input_size=16, compile=True))
    frames = counters["frames"]
    for training in (False, True):
        frames.clear()
        backbone.train(training)(torch.randn(2, 3, 16, 16))
        assert frames["ok"] == frames["total"] >= 6
