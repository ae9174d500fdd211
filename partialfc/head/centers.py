"""Class centers of a rank with their optimizer moments, and the active centers of a step.

Shapes:
    n: classes of this rank
    S: active classes or rows in a step
    c: classes in a chunk
    K: centers of each class side by side in a row
    D: components of a center
    B: images in the global batch
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from partialfc.config import AnyLoss, CenterSGD, CenterUpdate, HeadConfig
from partialfc.head.buffers import BufferPool
from partialfc.head.kernels import KernelBackend, torch_centers
from partialfc.head.kernels.torch_centers import (
    CENTERS,
    NormalizedCenters,
    RowFormat,
    StoredRows,
    TargetCenters,
)
from partialfc.head.optimizers import build_row_optimizer
from partialfc.head.precision import MatmulPrecision
from partialfc.head.sampling import ActiveClasses
from partialfc.head.storage import host, rounding
from partialfc.head.storage.catch_up import CatchUp
from partialfc.head.storage.device import DeviceStorage
from partialfc.head.storage.host import RowSnapshot
from partialfc.head.storage.initial import init_centers

_ROWS_PER_SETTLE = 1 << 14


def resolve_center_optimizer(config: HeadConfig, optim: CenterUpdate | None, loss: AnyLoss) -> CenterUpdate:
    """Return the update rule of the centers.

    Raises:
        ValueError: Both `optim` and `config.optim` are given, or the rule does not fit the settings.
    """
    if optim is not None and config.optim is not None:
        raise ValueError("optim and config.optim: expected one of them, got both")
    rule = optim or config.optim or CenterSGD()
    config.validate_with(rule, loss)
    return rule


def storage_dtypes(
    config: HeadConfig, moments: tuple[str, ...], computed: torch.dtype
) -> dict[str, torch.dtype]:
    """Return the storage dtype of centers and moments by name; `computed` replaces float32."""
    kept = torch.bfloat16 if config.optim_state_dtype == "bfloat16" else computed
    stored = torch.bfloat16 if config.centers_dtype == "bfloat16" else computed
    return {CENTERS: stored, **dict.fromkeys(moments, kept)}


class ActiveCenters:
    """Centers of one step, which are read and updated chunk by chunk.

    Args:
        rows: Storage of the S rows.
        classes: Active classes with tensors on the device.
        row_format: Format of the rows.
        kernels: Operations on the rows.
        counts: Number of steps of each row of this rank, int32 `[n]`; None if the optimizer does not count.

    Attributes:
        classes: Active classes with tensors on the device.
        num_active: S.
    """

    def __init__(
        self,
        rows: StoredRows,
        classes: ActiveClasses,
        row_format: RowFormat,
        kernels: KernelBackend,
        counts: Tensor | None,
    ) -> None:
        self.classes, self.num_active = classes, rows.size
        self._rows, self._row_format, self._kernels, self._counts = rows, row_format, kernels, counts
        self._ahead: NormalizedCenters | None = None

    def normalize_ahead(self, chunk: slice, *, inverse_norms_: Tensor) -> None:
        """Normalize the first chunk early; the next call of `normalized` returns it."""
        self._ahead = self._kernels.normalize_centers(
            self._chunk(chunk), self._row_format, inverse_norms_=inverse_norms_
        )

    def normalized(self, chunk: slice, *, inverse_norms_: Tensor) -> NormalizedCenters:
        """Return the normalized centers of a chunk, `[c K, D]`, valid until the next call.

        `inverse_norms_` `[c K, 1]` receives 1 / norms.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and chunk.start == 0:
            return ahead
        return self._kernels.normalize_centers(
            self._chunk(chunk), self._row_format, inverse_norms_=inverse_norms_
        )

    def targets(self, embeddings: Tensor) -> TargetCenters:
        """Return the center of each image's class with its angle to the embedding, from embeddings `[B, D]`."""
        return self._kernels.target_centers(
            self._rows, self._row_format, self.classes.target_slots, embeddings
        )

    def read(self, chunk: slice) -> Tensor:
        """Return the centers of a chunk for reading, `[c K, D]`, valid until the next call."""
        return torch_centers.read_centers(self._chunk(chunk), self._row_format)

    def gather(self, slots: Tensor) -> Tensor:
        """Return a copy of the rows at active indices `[N]`, `[N, K D]`."""
        return torch_centers.gather_rows(self._rows, self._row_format, slots)

    def write(self, slots: Tensor, values: Tensor) -> None:
        """Replace the rows at active indices `[N]`; equal indices have equal rows, and no row has missed a step."""
        assert self._rows.factors is None
        torch_centers.write_rows(self._rows, self._row_format, slots, values)

    def update(
        self, chunk: slice, d_unit_: Tensor, inverse_norms: Tensor, lr: Tensor, finite: Tensor
    ) -> None:
        """Take one optimizer step of a chunk with the gradient of its normalized centers, `[c K, D]`."""
        count = None if self._counts is None else self._increment_counts(self._counts, chunk, finite)
        self._kernels.step_centers(
            self._chunk(chunk), self._row_format, d_unit_, inverse_norms, lr=lr, finite=finite, count=count
        )

    def _increment_counts(self, counts: Tensor, chunk: slice, finite: Tensor) -> Tensor:
        """Increment and return the step counts of a chunk, `[c, 1]`."""
        index = chunk if self.classes.rows is None else self.classes.rows[chunk]
        count = counts[index] + finite.to(torch.int32)
        counts[index] = count
        return count.unsqueeze(1)

    def _chunk(self, chunk: slice) -> StoredRows:
        rows = self._rows
        tensors = rows.tensors
        if rows.index is None:
            tensors = {name: tensor[chunk] for name, tensor in tensors.items()}
        index, factors, noise = (
            None if tensor is None else tensor[chunk] for tensor in (rows.index, rows.factors, rows.noise)
        )
        return StoredRows(tensors, index, factors, noise)


class Centers:
    """Centers and moments of this rank, `[n, K D]` each, in the memory that `config.memory` selects.

    A step takes its rows with `activate` and returns them with `release` after an update, or with `discard`. Rows that
    are not active do not change. With `unsampled: decay`, they become what a dense optimizer would have made of them.

    Args:
        local_classes: Classes of this rank.
        width: D.
        config: Number of centers per class, storage and sampling.
        optim: Update rule.
        on_sphere: Normalize centers.
        seed: Seed of the initial centers.
        device: Device of the steps.
        dtype: Dtype of the steps.
        precision: Matrix products.
        kernels: Operations on rows.
        scratch: Pool of temporary tensors.
        drawn: Initialize the centers; otherwise they are 0.
    """

    def __init__(
        self,
        local_classes: range,
        width: int,
        config: HeadConfig,
        optim: CenterUpdate,
        *,
        on_sphere: bool,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        precision: MatmulPrecision,
        kernels: KernelBackend,
        scratch: BufferPool,
        drawn: bool = True,
    ) -> None:
        self.local_classes, self.width, self.device, self.dtype = local_classes, width, device, dtype
        self._optimizer = build_row_optimizer(optim, moments=config.optim_state_dtype != "none")
        types = storage_dtypes(config, self._optimizer.moments, dtype)
        row = width * config.subcenters
        self._storage = _build_storage(config, types, (len(local_classes), row), device, kernels)
        if drawn:
            init_centers(self._storage.tensors[CENTERS], seed, local_classes, device)
        rounded = [name for name, kind in types.items() if kind == torch.bfloat16]
        self.uses_stochastic_rounding = bool(rounded)
        self._row_format = RowFormat(
            optimizer=self._optimizer,
            subcenters=config.subcenters,
            width=width,
            on_sphere=on_sphere,
            dtype=dtype,
            rounding_columns={name: rounding.column_noise(name, row).to(device) for name in rounded},
            precision=precision,
            scratch=scratch,
        )
        counts = partial(torch.zeros, len(local_classes), dtype=torch.int32, device=device)
        self._counts = counts() if self._optimizer.counts else None
        self._kernels = kernels
        self._catch_up: CatchUp | None = None
        if config.unsampled == "decay" and config.uses_sampling:
            self._catch_up = CatchUp(len(local_classes), self._optimizer, device, dtype)

    @property
    def follows_teacher(self) -> bool:
        """True if centers follow the embeddings of a teacher instead of gradients."""
        return not self._optimizer.by_gradient

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Centers and moments by name, `[n, K D]` each, after the latest step."""
        self._storage.wait_for_writeback()
        return self._storage.tensors

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors to save, which share memory with the centers; their shapes never change.

        Returns:
            Tensors with a row for each class of this rank, and tensors that are equal on all ranks.
        """
        shards, shared = dict(self.tensors), {}
        if self._counts is not None:
            shards["counts"] = self._counts
        if self._catch_up is not None:
            shards["last_step"] = torch.from_numpy(self._catch_up.last_step)
            shared["learning_rates"] = self._catch_up.learning_rates
        return shards, shared

    def snapshot(self) -> dict[str, RowSnapshot]:
        """Return snapshots of those tensors of `state()` that are in host memory, by name."""
        return self._storage.snapshot()

    def after_load(self, steps: int) -> None:
        """Adapt to tensors of `state()` that were loaded and have taken `steps` steps."""
        self._storage.drop_prefetched()
        if self._catch_up is not None:
            self._catch_up.after_load(steps)

    @torch.no_grad()
    def settle(self) -> None:
        """Apply the missed steps to all rows; do nothing with `unsampled: hold`."""
        if self._catch_up is None:
            return
        self._storage.drop_prefetched()
        tensors = self.tensors
        for start in range(0, len(self.local_classes), _ROWS_PER_SETTLE):
            rows = np.arange(start, min(start + _ROWS_PER_SETTLE, len(self.local_classes)))
            factors = self._catch_up.factors(rows)
            settled = torch_centers.catch_up(
                {name: tensor[start : rows[-1] + 1] for name, tensor in tensors.items()}, factors
            )
            self._storage.before_write(rows)
            for name, values in settled.items():
                tensors[name][start : rows[-1] + 1] = values.to(tensors[name])
        self._catch_up.after_settle()

    def prefetch(self, classes: ActiveClasses) -> None:
        """Start to copy the rows of one of the next two steps to the device."""
        self._storage.prefetch(classes)

    def activate(self, classes: ActiveClasses) -> ActiveCenters:
        """Return the rows of `classes`, whose tensors are on the device, for a step."""
        return self._active(*self._storage.activate(classes), classes)

    def activate_read_only(self, classes: ActiveClasses) -> ActiveCenters:
        """Return the rows of `classes`, whose tensors are on the device, for reading, also during another step."""
        return self._active(*self._storage.activate_read_only(classes), classes)

    def release(self, classes: ActiveClasses, lr: Tensor, finite: Tensor) -> None:
        """Finish a step that has updated the rows of `classes`, the argument of `activate`."""
        if self._catch_up is not None:
            assert classes.host_rows is not None
            self._catch_up.append(classes.host_rows, lr, finite)
        self._storage.release(classes)

    def discard(self, classes: ActiveClasses) -> None:
        """Finish a step that does not update its rows."""
        self._storage.discard(classes)

    def _active(
        self, tensors: dict[str, Tensor], index: Tensor | None, classes: ActiveClasses
    ) -> ActiveCenters:
        factors = None
        if self._catch_up is not None:
            assert classes.host_rows is not None
            factors = self._catch_up.factors(classes.host_rows).to(self.dtype)
        rows = StoredRows(tensors, index, factors, classes.rounding_noise)
        return ActiveCenters(rows, classes, self._row_format, self._kernels, self._counts)


def _build_storage(
    config: HeadConfig,
    types: dict[str, torch.dtype],
    shape: tuple[int, int],
    device: torch.device,
    kernels: KernelBackend,
) -> DeviceStorage | host.HostStorage:
    if config.memory == "device":
        return DeviceStorage(types, shape, device)
    return host.build_host_storage(types, shape, device, kernels.copy_rows)
