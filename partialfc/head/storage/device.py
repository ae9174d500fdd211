"""Rows in the memory of the device."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.head.sampling import ActiveClasses
from partialfc.head.storage.host import RowSnapshot


class DeviceStorage:
    """Rows that steps read and update in place, with the interface of `HostStorage`."""

    def __init__(
        self, types: Mapping[str, torch.dtype], shape: tuple[int, int], device: torch.device
    ) -> None:
        # fill_ maps the pages now, which would slow the first steps
        self.tensors = {
            name: torch.empty(shape, dtype=dtype, device=device).fill_(0) for name, dtype in types.items()
        }

    def prefetch(self, classes: ActiveClasses) -> None:
        """Do nothing."""

    def activate(self, classes: ActiveClasses) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the tensors `[n, D]` and the indices of the active rows, or None for all rows."""
        return self.tensors, classes.rows

    activate_read_only = activate

    def release(self, classes: ActiveClasses) -> None:
        """Do nothing."""

    def discard(self, classes: ActiveClasses) -> None:
        """Do nothing."""

    def drop_prefetched(self) -> None:
        """Do nothing."""

    def wait_for_writeback(self) -> None:
        """Do nothing."""

    def before_write(self, rows: NDArray[np.int64]) -> None:
        """Do nothing."""

    def snapshot(self) -> dict[str, RowSnapshot]:
        """Return no snapshots: copies of device memory are fast enough."""
        return {}
