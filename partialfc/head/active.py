"""The classes that one step works on, as indices: how they are selected, and what is known of them.

Legend: B images in the global batch, V of them valid, N of them of a class of this rank, S active classes of this rank.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.config import IGNORE, HeadConfig
from partialfc.config.stages import value_at
from partialfc.errors import InputError
from partialfc.head import sampling
from partialfc.head.checks import check_labels, described
from partialfc.head.losses import Loss
from partialfc.head.neighbors import Neighbors
from partialfc.head.rows import rounding


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
    image_targets: Tensor  # [B] int64 which of the N an image is; -1: none
    image_slots: (
        Tensor  # [B] int64 where its class stands among the active ones; -1: it is none of this rank's
    )
    valid: Tensor  # [B] bool: not ignored
    valid_positions: Tensor  # [V] int64: where `valid` is true
    drawn_margins: Tensor | None  # [B] in the order of their drawing
    logit_correction: Tensor | None  # [S] added to the logits of a class, for all images but its own
    noise: Tensor | None  # [S] int32, for the rounding of rows to bfloat16

    @property
    def target_rows(self) -> NDArray[np.int64]:
        """[N] the rows of the targets, on the host."""
        slots = self.host_target_slots
        return slots if self.host_rows is None else self.host_rows[slots]

    def targets_of(self, start: int, stop: int) -> slice:
        """The part of `target_positions` and `target_slots` whose slots are from `start` to before `stop`."""
        first, last = np.searchsorted(self.host_target_slots, (start, stop)).tolist()
        return slice(first, last)

    def tensors(self) -> dict[str, Tensor]:
        """Those that a step needs on the device, by the name of their field."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: it for name, it in fields.items() if isinstance(it, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same with other tensors in the place of those of `tensors()`."""
        changes: dict[str, Any] = dict(tensors)
        return dataclasses.replace(self, **changes)


class _Drawn(NamedTuple):
    """The active rows of a step that does not work on all."""

    rows: NDArray[np.int64]  # [S] ascending
    certain: NDArray[np.int64]  # those of them that are not there by chance, ascending
    share: float  # of all classes, that chance draws


class Selection:
    """Selects the active classes of a step: those of its batch, and of the others a sampled share, or with neighbours
    some that are near the batch's.

    What it gives is a function of (seed, number of the step, labels, stored neighbours); no communication, nothing on
    the device.
    """

    def __init__(
        self,
        num_classes: int,
        owned: range,
        config: HeadConfig,
        *,
        steps_per_epoch: int | None,
        seed: int,
        noisy: bool,
        dtype: torch.dtype,
        neighbors: Neighbors | None,
    ) -> None:
        self._num_classes, self._owned, self._correction = num_classes, owned, config.correction
        self._rate, self._steps_per_epoch = config.sample_rate, steps_per_epoch
        self._seed, self._noisy, self._dtype, self._neighbors = seed, noisy, dtype, neighbors
        # Rows that catch up are told by their index, in steps that work on all of them, too.
        self._indexed = config.unsampled == "decay" and config.samples

    def __call__(self, labels: Tensor, number: int, loss: Loss) -> ActiveClasses:
        """The active classes of step `number`, given the labels [B] of the global batch; InputError on one of no class."""
        rate = value_at(self._rate, number, self._steps_per_epoch)
        if self._neighbors is not None:
            self._neighbors.take_in(number)
        known = self._checked(labels)
        owned = self._owned
        positions = np.flatnonzero((known >= owned.start) & (known < owned.stop))
        positions = positions[np.argsort(known[positions], kind="stable")]
        targets = known[positions] - owned.start  # [N] local rows
        sampled = None if rate == 1 else self._sampled(known, targets, number, rate)
        rows = self._all_rows() if sampled is None else sampled.rows
        slots = targets if rows is None else np.searchsorted(rows, targets)
        image_targets, image_slots = np.full((2, len(known)), -1)
        image_targets[positions], image_slots[positions] = np.arange(len(positions)), slots
        drawn = loss.draw(self._seed, number, len(known))
        valid = known != IGNORE
        return ActiveClasses(
            rows=None if rows is None else torch.from_numpy(rows),
            host_rows=rows,
            target_positions=torch.from_numpy(positions),
            target_slots=torch.from_numpy(slots),
            host_target_slots=slots,
            image_targets=torch.from_numpy(image_targets),
            image_slots=torch.from_numpy(image_slots),
            valid=torch.from_numpy(valid),
            valid_positions=torch.from_numpy(np.flatnonzero(valid)),
            drawn_margins=None if drawn is None else torch.from_numpy(drawn).to(self._dtype),
            logit_correction=self._logit_correction(sampled),
            noise=self._noise(rows, number),
        )

    def _checked(self, labels: Tensor) -> NDArray[np.int64]:
        wanted = "[B] of the global batch, on cpu"
        check_labels(labels, wanted)
        if labels.device.type != "cpu" or not len(labels):
            raise ValueError(f"labels: found {described(labels)}; wanted integers {wanted}")
        known = labels.numpy().astype(np.int64)
        wrong = np.flatnonzero((known < IGNORE) | (known >= self._num_classes))
        if len(wrong):
            raise InputError(
                f"image {wrong[0]} of the batch has label {known[wrong[0]]}; "
                f"wanted 0 to {self._num_classes - 1}, or {IGNORE} to ignore it"
            )
        return known

    def _all_rows(self) -> NDArray[np.int64] | None:
        return np.arange(len(self._owned)) if self._indexed else None

    def _sampled(
        self, known: NDArray[np.int64], targets: NDArray[np.int64], number: int, rate: float
    ) -> _Drawn:
        owned, certain = self._owned, targets
        count = sampling.num_strata(self._num_classes, rate)
        if self._neighbors is not None:
            everyones = np.unique(known[known != IGNORE])
            near, count = self._neighbors.near(everyones, number, count)
            mine = near[np.searchsorted(near, owned.start) : np.searchsorted(near, owned.stop)]
            certain = sampling.with_targets(mine - owned.start, targets)
        drawn = sampling.sampled(self._num_classes, count, self._seed, number, owned) - owned.start
        return _Drawn(sampling.with_targets(drawn, certain), certain, count / self._num_classes)

    def _logit_correction(self, sampled: _Drawn | None) -> Tensor | None:
        """A class that is active by chance stands for C / n classes; one that is so for certain, for itself."""
        if sampled is None or self._correction == "none":
            return None
        correction = np.where(np.isin(sampled.rows, sampled.certain), 0.0, -math.log(sampled.share))
        return torch.from_numpy(correction).to(self._dtype)

    def _noise(self, rows: NDArray[np.int64] | None, number: int) -> Tensor | None:
        if not self._noisy:
            return None
        owned = self._owned
        classes = np.arange(owned.start, owned.stop) if rows is None else rows + owned.start
        return rounding.noise_of(classes, self._seed, number)
