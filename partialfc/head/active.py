"""The classes that one step works on, as indices.

Legend: B images in the global batch, V of them valid, N of them of a class of this rank, S active classes of this rank.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class ActiveClasses:
    """The active classes of this rank in one step, and the images that belong to them; made on the host."""

    rows: Tensor | None  # [S] int64 rows of this rank's shard, ascending; None: all
    host_rows: NDArray[np.int64] | None  # the same, always on the host
    target_positions: (
        Tensor  # [N] int64 positions in the global batch of the images of this rank's classes, by class
    )
    target_slots: Tensor  # [N] int64 where their classes stand among the active ones, ascending
    host_target_slots: NDArray[np.int64]  # [N] the same, always on the host
    valid: Tensor  # [B] bool: not ignored
    valid_positions: Tensor  # [V] int64: where `valid` is true
    drawn_margins: Tensor | None  # [B] in the order of their drawing
    logit_correction: Tensor | None  # [S] added to the logits of a class, for all images but its own
    noise: Tensor | None  # [S] int32, for the rounding of rows to bfloat16

    def targets_of(self, start: int, stop: int) -> slice:
        """The part of `target_positions` and `target_slots` whose slots are from `start` to before `stop`."""
        first, last = np.searchsorted(self.host_target_slots, (start, stop)).tolist()
        return slice(first, last)

    def to(self, device: torch.device) -> Self:
        """The same on `device`, which the host does not wait for."""
        if device.type == "cpu":
            return self
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {
            name: it.pin_memory().to(device, non_blocking=True) if isinstance(it, Tensor) else it
            for name, it in fields.items()
        }
        return type(self)(**moved)
