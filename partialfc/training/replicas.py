"""Replicated state: gradients summed over ranks, running statistics averaged over ranks, and the EMA of the network.

All of it is bitwise identical on all ranks after every step. The gradient buckets are the same in every step
of every run. DistributedDataParallel rebuilds its buckets after the first step, also after the first step of
a resumed run. This would change the order of summation, and with it the last bits.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Work

from partialfc.runtime import comm

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_BUCKET_BYTES = 25 << 20


class GradientBuckets:
    """Flat buckets that own the gradients of `parameters`: every `.grad` is a view.

    Parameters fill the buckets from last to first, since backward reaches them in about this order.

    Args:
        parameters: Parameters that require grad.
        group: Group to sum over.
        reduce_dtype: Dtype that gradients are rounded to for the sum over ranks; None: their own.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        group: ProcessGroup,
        *,
        reduce_dtype: torch.dtype | None = None,
    ) -> None:
        self._group = group
        self._sent_as = reduce_dtype if group.size() > 1 else None
        self._sent: list[Tensor] = []  # tensors being summed, in the order of the buckets
        self._buckets: list[Tensor] = []
        self._sizes: list[int] = []  # parameters per bucket
        self._missing: list[int] = []  # parameters per bucket whose gradient is incomplete
        self._started: list[Work] = []
        self._summing = False
        for bucket in _iter_buckets([parameter for parameter in parameters if parameter.requires_grad]):
            self._lay_out(bucket)

    def zero(self) -> None:
        """Zero all gradients; call it before the first backward of a step."""
        for bucket in self._buckets:
            bucket.zero_()

    @contextmanager
    def all_reduce_on_exit(self) -> Iterator[None]:
        """Run the last backward of a step; afterwards every `.grad` is the sum over the ranks."""
        self._missing, self._summing = list(self._sizes), True
        yield
        self._summing = False
        self._missing = [0] * len(self._buckets)  # parameters that backward did not reach are complete, too
        self._reduce_ready_buckets()
        comm.wait_all(self._started)
        for bucket, sent in zip(self._buckets, self._sent, strict=False):
            bucket.copy_(sent)
        self._sent.clear()

    def norm(self) -> Tensor:
        """Return the Euclidean norm of all gradients, a scalar on the device."""
        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(bucket) for bucket in self._buckets])
        )

    def divide(self, divisor: Tensor) -> None:
        """Divide all gradients by a scalar on the device."""
        for bucket in self._buckets:
            bucket.div_(divisor)

    def _lay_out(self, parameters: list[nn.Parameter]) -> None:
        bucket = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        offset, index = 0, len(self._buckets)
        for parameter in parameters:
            # The parameter's own strides: fused optimizers walk parameter and gradient as flat memory.
            parameter.grad = bucket.as_strided(parameter.shape, parameter.stride(), offset)
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._on_grad_ready(index))
            offset += parameter.numel()
        self._buckets.append(bucket)
        self._sizes.append(len(parameters))

    def _on_grad_ready(self, index: int) -> None:
        if self._summing:
            self._missing[index] -= 1
            self._reduce_ready_buckets()

    def _reduce_ready_buckets(self) -> None:
        """Launch complete buckets in order: collectives must be issued in the same order on all ranks."""
        if self._group.size() == 1:
            return
        while len(self._started) < len(self._buckets) and self._missing[len(self._started)] == 0:
            bucket = self._buckets[len(self._started)]
            if self._sent_as is not None:
                bucket = bucket.to(self._sent_as)
                self._sent.append(bucket)
            self._started.append(comm.all_reduce_async(bucket, self._group))


def _iter_buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    filled = 0
    for parameter in reversed(parameters):
        if bucket and filled + parameter.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, filled = [], 0
        bucket.append(parameter)
        filled += parameter.nbytes
    if bucket:
        yield bucket


class RunningStats:
    """Floating-point buffers of a module (BatchNorm's running statistics) as parts of one flat tensor."""

    def __init__(self, module: nn.Module) -> None:
        buffers = [
            (owner, name, buffer)
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self._flat = torch.cat([buffer.flatten() for *_, buffer in buffers] or [torch.empty(0)])
        offset = 0
        for owner, name, buffer in buffers:
            # Views would share one version counter. A compiled block, which saves its buffers for backward,
            # would then reject the change by the next block.
            setattr(owner, name, self._flat[offset : offset + buffer.numel()].view_as(buffer).data)
            offset += buffer.numel()
        self._change: Tensor | None = None  # change in this step, while it is summed over the ranks
        self._summing: list[Work] = []

    def clone(self) -> Tensor:
        """Return a copy for `restore_unless`."""
        return self._flat.clone()

    def restore_unless(self, finite: Tensor, kept: Tensor) -> None:
        """Restore `clone` where `finite`, a bool scalar on the device, is False."""
        self._flat.copy_(torch.where(finite, self._flat, kept))

    def start_average(self, kept: Tensor, group: ProcessGroup) -> None:
        """Start to sum the changes since `clone` over the ranks; `finish_average` must follow."""
        if group.size() > 1 and len(kept):
            self._change = self._flat - kept
            self._summing.append(comm.all_reduce_async(self._change, group))

    def finish_average(self, kept: Tensor, group: ProcessGroup) -> None:
        """Set the statistics to `clone` plus the mean change, as if one process had seen all micro-batches.

        Buffers that a network never changes keep their bits.
        """
        if self._change is not None:
            comm.wait_all(self._summing)
            torch.add(kept, self._change, alpha=1 / group.size(), out=self._flat)
            self._change = None


class ModelEMA(Generic[NetworkT]):
    """Exponential moving average of a network's parameters and running statistics, kept in a second network.

    After every step: average += (1 - d) (current - average) with d = min(decay, (1 + step) / (10 + step)).
    The weights of the first steps are soon forgotten, as in TensorFlow's ExponentialMovingAverage.

    Args:
        of: Network to average; its running statistics must be flattened by a RunningStats.
        network: Network of the same type on the same device; initialized as a copy.
        decay: Upper bound of d.
    """

    def __init__(self, source: NetworkT, network: NetworkT, decay: float) -> None:
        network.load_state_dict(source.state_dict())
        network.requires_grad_(False).eval()
        self.network = network
        self._decay = decay
        self._source_tensors, self._ema_tensors = _averaged_tensors(source), _averaged_tensors(network)

    def update(self, step: int, finite: Tensor) -> None:
        """Update after a step, counted from 0.

        Nothing changes where `finite`, a bool scalar on the device, is False.
        """
        share = finite.float() * (1 - min(self._decay, (1 + step) / (10 + step)))
        change = torch._foreach_sub(self._source_tensors, self._ema_tensors)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self._ema_tensors, change)


def _averaged_tensors(network: nn.Module) -> list[Tensor]:
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    return [parameter.detach() for parameter in network.parameters()] + buffers
