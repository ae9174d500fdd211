"""A network's forward and backward as CUDA graphs: recorded once, and launched as one each from then on.

A host launches the kernels of a deep network more slowly than a GPU takes those of a small batch; a graph it launches at
once. The kernels are the same, and so are the bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ForwardFn = Callable[[Tensor], Tensor]  # inputs [m, ...] -> float32 [m, D]

_NUM_WARMUP_PASSES = 3  # in which libraries choose their algorithms and make their workspaces


class CUDAGraphNetwork:
    """What `forward` and its backward do on a GPU with inputs of one shape, as graphs that are replayed.

    All tensors that they read and write stay where they were when they were recorded: parameters, their `.grad`, running
    statistics. What is drawn at random depends on the seed at the time of a replay. Nothing is computed while they are
    recorded; `warm_up` comes first. Whatever waits for the device raises a RuntimeError of torch's.
    """

    def __init__(self, forward: ForwardFn, parameters: list[nn.Parameter], inputs: Tensor) -> None:
        self._inputs = inputs.clone()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        with _capture(self._forward, pool):
            self._outputs = forward(self._inputs)
        self._gradient = torch.zeros_like(self._outputs)
        with _capture(self._backward, pool):
            _add_gradients(self._outputs, parameters, self._gradient)

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs [m, D], without a graph of autograd's, until the next call."""
        self._inputs.copy_(inputs)
        self._forward.replay()
        return self._outputs.detach()

    def backward(self, gradient: Tensor) -> None:
        """From the gradient [m, D] of the latest outputs to every parameter's `.grad`, to which it is added."""
        self._gradient.copy_(gradient)
        self._backward.replay()


def warm_up(forward: ForwardFn, parameters: list[nn.Parameter], inputs: Tensor) -> None:
    """Run forward and backward a few times, as recording wants it; gradients stay as they are."""
    here, aside = torch.cuda.current_stream(inputs.device), torch.cuda.Stream(inputs.device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(_NUM_WARMUP_PASSES):
            outputs = forward(inputs)
            torch.autograd.grad(outputs, parameters, torch.zeros_like(outputs), allow_unused=True)
    here.wait_stream(aside)


def _add_gradients(outputs: Tensor, parameters: list[nn.Parameter], gradient: Tensor) -> None:
    # Not by outputs.backward(): it adds gradients on the stream on which a parameter was first used.
    found = torch.autograd.grad(outputs, parameters, gradient, allow_unused=True)
    grads: list[Tensor] = []
    reached: list[Tensor] = []
    for parameter, new in zip(parameters, found, strict=True):
        if new is not None and parameter.grad is not None:
            grads.append(parameter.grad)
            reached.append(new)
    torch._foreach_add_(grads, reached)


@contextmanager
def _capture(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    # thread_local: the threads of loader and NCCL go on
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        yield
