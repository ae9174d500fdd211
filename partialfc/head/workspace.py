"""Sizes, memory and operations that the forward and the update of a step share.

Shapes:
    B: images in the global batch
    S: active classes of this rank
    c: classes in a chunk
    K: centers per class
    D: components of a center
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.buffers import BufferPool
from partialfc.head.kernels import KernelBackend
from partialfc.head.kernels.torch_ops import spread_to_nearest
from partialfc.head.losses import MarginLoss
from partialfc.head.precision import MatmulPrecision
from partialfc.runtime.comm import OptionalGroup

# Upper bounds of the rows and logits of a chunk: they fit into the cache of a core, or fill a GPU.
_ROWS_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}
_LOGITS_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


def classes_per_chunk(width: int, batch: int, device: str, itemsize: int, subcenters: int = 1) -> int:
    """Return c, the number of classes in a chunk.

    Args:
        width: D.
        batch: B.
        device: Device type.
        itemsize: Bytes of a component.
        subcenters: K.
    """
    row, logits = width * itemsize, batch * itemsize
    fitting = min(_ROWS_BYTES[device] // row, _LOGITS_BYTES[device] // logits)
    return max(1, fitting // subcenters)


@dataclass(frozen=True)
class StepShape:
    """Sizes that determine the shapes of all tensors of a step."""

    batch: int  # B
    num_active: int  # S
    chunk: int  # c
    subcenters: int  # K

    def chunks(self) -> Iterator[slice]:
        """Yield the active indices of each chunk."""
        for start in range(0, self.num_active, self.chunk):
            yield slice(start, min(start + self.chunk, self.num_active))


class LogitGrads(NamedTuple):
    """Unscaled gradients of the loss by the logits of negatives, of a chunk or of all active classes."""

    values: Tensor  # [c, B], 0 at the targets
    nearest_subcenters: Tensor | None  # [c, B] uint8, index of the center nearest to the image; None if K = 1
    inverse_norms: Tensor  # [c K, 1], 1 / norms of the centers

    def of(self, chunk: slice) -> "LogitGrads":
        """Return the part of a chunk."""
        subcenters = len(self.inverse_norms) // len(self.values)
        nearest_subcenters = None if self.nearest_subcenters is None else self.nearest_subcenters[chunk]
        inverse = self.inverse_norms[chunk.start * subcenters : chunk.stop * subcenters]
        return LogitGrads(self.values[chunk], nearest_subcenters, inverse)


@dataclass(frozen=True)
class Workspace:
    """Memory and operations of `forward` and `backward`, for all steps of a head."""

    width: int  # D
    subcenters: int  # K
    interclass_threshold: float  # largest cosine of a negative; 0: no limit
    logits_budget: int  # bytes
    precision: MatmulPrecision
    kernels: KernelBackend
    scratch: BufferPool
    group: OptionalGroup
    device: torch.device
    dtype: torch.dtype

    def shape_of(self, num_active: int, batch: int) -> StepShape:
        """Return the sizes of a step."""
        size = classes_per_chunk(self.width, batch, self.device.type, self.dtype.itemsize, self.subcenters)
        return StepShape(batch, num_active, size, self.subcenters)

    def kept_grads(self, shape: StepShape) -> LogitGrads | None:
        """Return memory for the logit gradients of all active classes, or None if they exceed the budget."""
        dtype, several = self.precision.grads_dtype, self.subcenters > 1
        if shape.num_active * shape.batch * (dtype.itemsize + several) > self.logits_budget:
            return None
        return self._memory("kept ", shape.num_active, shape.batch, dtype)

    def chunk_grads(self, shape: StepShape, chunk: slice, kept: LogitGrads | None) -> LogitGrads:
        """Return memory for the logit gradients of a chunk: a part of `kept`, or valid until the next chunk."""
        if kept is not None:
            return kept.of(chunk)
        return self._memory("", chunk.stop - chunk.start, shape.batch, self.precision.grads_dtype)

    def logits_memory(self, part: LogitGrads) -> Tensor:
        """Return memory for the logits of a chunk, `[c, B]`; that of its gradients if the dtypes are equal."""
        if part.values.dtype == self.dtype:
            return part.values
        return self.scratch.get("logits", tuple(part.values.shape), self.dtype)

    def center_grads(self, part: LogitGrads) -> Tensor:
        """Return the gradients by the logits of centers, `[c K, B]`, 0 for images with a nearer center."""
        if part.nearest_subcenters is None:
            return part.values
        shape = len(part.inverse_norms), part.values.shape[1]
        out = self.scratch.get("spread", shape, part.values.dtype)
        return spread_to_nearest(part.values, part.nearest_subcenters, self.subcenters, out=out)

    def max_negative_logit(self, loss: MarginLoss) -> float | None:
        """Return the largest logit of a negative that takes part, or None without a limit."""
        return self.interclass_threshold * loss.scale if self.interclass_threshold else None

    def _memory(self, name: str, classes: int, batch: int, dtype: torch.dtype) -> LogitGrads:
        get, several = self.scratch.get, self.subcenters > 1
        return LogitGrads(
            get(f"{name}logit grads", (classes, batch), dtype),
            get(f"{name}nearest_subcenters", (classes, batch), torch.uint8) if several else None,
            get(f"{name}inverse norms", (classes * self.subcenters, 1), self.dtype),
        )
