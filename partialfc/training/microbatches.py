"""Micro-batches of a rank's part of a step through the replicated network.

Shapes:
    b: inputs of this rank
    m: inputs of a micro-batch, normalized together
    k: micro-batches
    D: embedding size
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from partialfc.runtime import counter_rng
from partialfc.training.cuda_graphs import CUDAGraphNetwork, warm_up
from partialfc.training.replicas import GradientBuckets


class MicroBatchRunner:
    """Forward and backward of a network in micro-batches.

    With k > 1 there are two passes, so that the graph of one micro-batch exists at a time. Dropout is keyed
    by (seed, step, index of the micro-batch in the global batch). Running statistics of normalization are
    updated once per step, by the mean over this rank's micro-batches.

    Args:
        network: Network that owns the BatchNorms.
        forward: Function to call, inputs `[m, ...]` -> float32 `[m, D]`.
        gradients: Gradient buckets of the network's parameters.
        seed: Seed of the run.
        micro_batch_size: m; None: all inputs of the rank.
        uses_cuda_graphs: Whether forward and backward are CUDA graphs; requires k = 1 and inputs of one
            shape.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Callable[[Tensor], Tensor],
        gradients: GradientBuckets,
        *,
        micro_batch_size: int | None,
        seed: int,
        rank: int,
        use_cuda_graphs: bool = False,
    ) -> None:
        self._network, self._forward, self._gradients = network, forward, gradients
        self._size, self._seed, self._rank = micro_batch_size, seed, rank
        self._norms = [it for it in network.modules() if isinstance(it, nn.BatchNorm1d | nn.BatchNorm2d)]
        self._momenta = [norm.momentum or 0.0 for norm in self._norms]
        self._graph: Tensor | None = None
        self._cuda_graph: CUDAGraphNetwork | None = None
        self._use_cuda_graphs = use_cuda_graphs

    def forward(self, inputs: Tensor, step: int, *, frozen: bool = False) -> Tensor:
        """Return outputs `[b, D]`, a leaf that requires grad; `backward` continues from its gradient.

        A frozen network runs in evaluation mode and keeps nothing.
        """
        parts = self._split(inputs)
        if self._network.training == frozen:
            self._network.train(not frozen)
        if self._use_cuda_graphs and not frozen:
            return self._forward_graph(inputs, step)
        with torch.set_grad_enabled(len(parts) == 1 and not frozen):
            outputs = []
            for index, part in enumerate(parts):
                self._set_momenta(
                    [_micro_batch_momentum(momentum, index, len(parts)) for momentum in self._momenta]
                )
                outputs.append(self._forward_micro_batch(part, step, self._rank * len(parts) + index))
        self._graph = outputs[0] if len(parts) == 1 and not frozen else None
        return torch.cat(outputs).detach().requires_grad_()

    def backward(self, inputs: Tensor, step: int, gradient: Tensor) -> None:
        """Accumulate the gradients of every parameter from the outputs' gradient `[b, D]`, summed over the ranks."""
        parts = self._split(inputs)
        self._set_momenta([0.0] * len(self._norms))  # running statistics were updated in the forward pass
        self._gradients.zero()
        if self._cuda_graph is not None:
            self._cuda_graph.backward(gradient)
            with self._gradients.all_reduce_on_exit():
                pass  # all gradients are complete
            return
        for index, (part, share) in enumerate(zip(parts, gradient.split(len(parts[0])), strict=True)):
            outputs = self._graph
            if outputs is None:
                outputs = self._forward_micro_batch(part, step, self._rank * len(parts) + index)
            with self._gradients.all_reduce_on_exit() if index == len(parts) - 1 else nullcontext():
                outputs.backward(share)
        self._graph = None

    def _forward_graph(self, inputs: Tensor, step: int) -> Tensor:
        """Return the outputs by CUDA graphs, which are captured with the first inputs."""
        if self._cuda_graph is None:
            self._cuda_graph = self._record(inputs)
        self._seed_micro_batch(step, self._rank)
        torch._foreach_add_(self._batch_counters(), 1)  # on the host, which a replay does not involve
        return self._cuda_graph.forward(inputs).clone().requires_grad_()

    def _record(self, inputs: Tensor) -> CUDAGraphNetwork:
        """Capture forward and backward without changing running statistics and counters."""
        expected, counts = (
            [it for it in self._network.parameters() if it.requires_grad],
            self._batch_counters(),
        )
        before = [it.clone() for it in counts]
        self._set_momenta([0.0] * len(self._norms))
        warm_up(self._forward, expected, inputs)
        self._set_momenta(self._momenta)
        recorded = CUDAGraphNetwork(self._forward, expected, inputs)
        torch._foreach_copy_(counts, before)
        return recorded

    def _batch_counters(self) -> list[Tensor]:
        """Return the batch counters of the normalization layers, on the host."""
        counts = (norm.num_batches_tracked for norm in self._norms)
        return [it for it in counts if it is not None]

    def _split(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs.split(self._size or len(inputs))

    def _set_momenta(self, momenta: list[float]) -> None:
        for norm, momentum in zip(self._norms, momenta, strict=True):
            norm.momentum = momentum

    def _forward_micro_batch(self, part: Tensor, step: int, index: int) -> Tensor:
        self._seed_micro_batch(step, index)
        return self._forward(part)

    def _seed_micro_batch(self, step: int, index: int) -> None:
        """Seed the random number generator for micro-batch `index` of the global batch."""
        seed = counter_rng.derive_key(self._seed, "dropout", step, index) >> 1
        # torch.manual_seed takes a millisecond, since it records the caller for each missing kind of device.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)


def _micro_batch_momentum(momentum: float, index: int, total: int) -> float:
    """Return the momentum of update `index` of `total`, so that all updates get the weight momentum / total."""
    return momentum / (total - (total - 1 - index) * momentum)
