"""Forward and backward of a network as CUDA graphs: captured once, then replayed.

The host launches the kernels of a deep network more slowly than a GPU runs them for a small batch. A graph
takes one launch. Kernels and results are identical.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ForwardFn = Callable[[Tensor], Tensor]  # inputs [m, ...] -> float32 [m, D]

_NUM_WARMUP_PASSES = 3  # libraries select algorithms and allocate workspaces in them


class CUDAGraphNetwork:
    """Forward and backward for inputs of one shape as CUDA graphs.

    All tensors involved keep their addresses after capture: parameters, their `.grad`, running statistics.
    Random numbers depend on the seed at replay. Nothing is computed during capture; `warm_up` comes first. An
    operation that synchronizes with the device raises a RuntimeError of torch.
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
        """Return the outputs `[m, D]`, without autograd graph; valid until the next call."""
        self._inputs.copy_(inputs)
        self._forward.replay()
        return self._outputs.detach()

    def backward(self, gradient: Tensor) -> None:
        """Accumulate the gradient `[m, D]` of the latest outputs into every parameter's `.grad`."""
        self._gradient.copy_(gradient)
        self._backward.replay()


def warm_up(forward: ForwardFn, parameters: list[nn.Parameter], inputs: Tensor) -> None:
    """Run forward and backward a few times before capture, without changing gradients."""
    here, aside = torch.cuda.current_stream(inputs.device), torch.cuda.Stream(inputs.device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(_NUM_WARMUP_PASSES):
            outputs = forward(inputs)
            torch.autograd.grad(outputs, parameters, torch.zeros_like(outputs), allow_unused=True)
    here.wait_stream(aside)


def _add_gradients(outputs: Tensor, parameters: list[nn.Parameter], gradient: Tensor) -> None:
    # outputs.backward() would accumulate on the stream where each parameter was first used.
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
    # thread_local: the threads of the loader and NCCL continue
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        yield
