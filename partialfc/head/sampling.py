"""Active classes of a step: those of its batch, and a sampled fraction of the others.

The stratified sample is a pure function of (seed, step), equal for any number of ranks, without communication. All
functions run on the host, ahead of the device.

Shapes:
    B: images in the global batch
    C: classes
    n: classes of this rank
    S: active classes of this rank in a step
    N: images with a class of this rank
    M: images of a chunk
    c: classes of a chunk
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from partialfc.config import IGNORE_LABEL, HeadConfig
from partialfc.config.scheduled import value_at
from partialfc.errors import InputError
from partialfc.head.arguments import check_labels, describe_tensor
from partialfc.head.device_sampling import SamplePlan, plan_sample
from partialfc.head.losses import MarginLoss
from partialfc.head.neighbors import Neighbors
from partialfc.head.storage import rounding
from partialfc.head.strata import Ints, Strata
from partialfc.runtime import counter_rng


class ChunkTargets(NamedTuple):
    """Positions of the targets in the logits `[c, B]` of a chunk."""

    slots: Tensor  # [B], `ActiveClasses.target_slots`
    start: int  # active index of the first class of the chunk
    size: int  # c
    images: (
        Tensor  # [M] batch indices in order of class; any superset of the images with a target in the chunk
    )

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the row of each image's target in the chunk, and a mask of the targets that are in it, `[M]` each."""
        rows = self.slots.index_select(0, self.images) - self.start
        inside = (rows >= 0) & (rows < self.size)
        return rows.clamp(0, self.size - 1), inside


@dataclass(frozen=True)
class ActiveClasses:
    """Active classes of this rank in one step, and the images that belong to them.

    Properties of images are masked tensors `[B]`: no shape depends on the images whose class is on this rank.
    """

    num_active: int  # S
    # [S] int64, local indices in ascending order; None: all classes, or not computed yet, see `plan`
    rows: Tensor | None
    target_slots: Tensor  # [B] int64, active index of the image's class; -1: on another rank, or ignored
    has_target: Tensor  # [B] bool, True if the class is on this rank
    images_by_class: Tensor  # [B] int64, batch indices ordered by target slot, -1 first
    valid: Tensor  # [B] bool, False for the label -1
    num_valid: Tensor  # float64 scalar, at least 1
    drawn_margins: Tensor | None  # [B], values of `MarginLoss.draw`
    logit_correction: Tensor | None  # [S], added to the logits of negatives
    rounding_noise: Tensor | None  # [S] int32, for rows in bfloat16
    plan: SamplePlan | None  # of rows that the device computes
    host_rows: Ints | None  # `rows` on the host
    host_target_rows: Ints  # [N], local indices of the targets, on the host
    host_sorted_slots: Ints  # [B], target slots of `images_by_class`, on the host

    def in_chunk(self, chunk: slice) -> tuple[ChunkTargets, Tensor | None]:
        """Return the targets of a chunk, and its logit correction `[c]`."""
        correction = None if self.logit_correction is None else self.logit_correction[chunk]
        first, last = np.searchsorted(self.host_sorted_slots, (chunk.start, chunk.stop)).tolist()
        images = self.images_by_class[first:last]
        return ChunkTargets(self.target_slots, chunk.start, chunk.stop - chunk.start, images), correction

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a step needs on the device, by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: it for name, it in fields.items() if isinstance(it, Tensor)}
        return tensors if self.plan is None else tensors | self.plan.tensors()

    def on_device(
        self,
        tensors: Mapping[str, Tensor],
        sample_rows: Callable[..., tuple[Tensor, Tensor | None]],
        dtype: torch.dtype,
    ) -> Self:
        """Return a copy with other tensors in place of those of `tensors()`, and with the rows of a plan.

        Args:
            tensors: Tensors by the names of `tensors()`.
            sample_rows: Kernel that computes the rows of a plan.
            dtype: Dtype of the computation.
        """
        changes: dict[str, Any] = dict(tensors)
        if self.plan is not None:
            planned = {name: changes.pop(name) for name in self.plan.tensors()}
            changes |= self.plan.complete(planned, sample_rows, dtype)
        return dataclasses.replace(self, **changes)


class _Selection(NamedTuple):
    """Active rows of a step."""

    slots: Ints  # [N], active indices of the targets
    num_active: int  # S
    rows: Ints | None = None  # [S]; None: all rows, or those of the plan
    correction: Tensor | None = None  # [S]
    noise: Tensor | None = None  # [S]
    plan: SamplePlan | None = None


class _Sample(NamedTuple):
    """Active rows of a step with a sample rate below 1."""

    rows: Ints  # [S], ascending
    always_active: Ints  # targets and hard negatives among them, ascending
    fraction: float  # of all classes that is sampled uniformly


class ClassSampler:
    """Selection of the active classes of a step, a function of (seed, step, labels, stored neighbor lists).

    Args:
        num_classes: C.
        local_classes: Classes of this rank.
        config: Sample rate and kind of sampling.
        steps_per_epoch: Required if the sample rate has stages that begin at epochs.
        seed: Seed of all draws.
        uses_stochastic_rounding: Generate rounding noise.
        dtype: Dtype of draws and logit corrections.
        neighbors: Neighbor lists of `sampling: hard`.
    """

    def __init__(
        self,
        num_classes: int,
        local_classes: range,
        config: HeadConfig,
        *,
        steps_per_epoch: int | None,
        seed: int,
        uses_stochastic_rounding: bool,
        dtype: torch.dtype,
        neighbors: Neighbors | None,
    ) -> None:
        self._num_classes, self._local_classes, self._correction = (
            num_classes,
            local_classes,
            config.logit_correction,
        )
        self._rate, self._steps_per_epoch = config.sample_rate, steps_per_epoch
        self._seed, self._uses_stochastic_rounding, self._dtype, self._neighbors = (
            seed,
            uses_stochastic_rounding,
            dtype,
            neighbors,
        )
        self._on_device = config.sample_on == "device"
        # Rows that decay need indices, also in steps with all classes.
        self._indexed = config.unsampled == "decay" and config.uses_sampling

    def __call__(self, labels: Tensor, number: int, loss: MarginLoss) -> ActiveClasses:
        """Return the active classes of a step.

        Args:
            labels: Labels of the global batch, `[B]`.
            number: Index of the step.
            loss: Loss of the step, which may draw random margins.

        Raises:
            InputError: A label is neither a class nor -1.
        """
        if self._neighbors is not None:
            self._neighbors.commit_pending(number)
        known = self._validate_labels(labels)
        local_classes = self._local_classes
        positions = np.flatnonzero((known >= local_classes.start) & (known < local_classes.stop))
        targets = known[positions] - local_classes.start  # [N] rows
        ordered = np.sort(targets)
        selected = self._select(known, targets, ordered, number)
        slots = np.full(len(known), -1)
        slots[positions] = selected.slots
        by_class = np.argsort(slots, kind="stable")
        drawn = loss.draw(self._seed, number, len(known))
        valid = known != IGNORE_LABEL
        return ActiveClasses(
            num_active=selected.num_active,
            rows=None if selected.rows is None else torch.from_numpy(selected.rows),
            target_slots=torch.from_numpy(slots),
            has_target=torch.from_numpy(slots >= 0),
            images_by_class=torch.from_numpy(by_class),
            valid=torch.from_numpy(valid),
            num_valid=torch.tensor(max(1, np.count_nonzero(valid)), dtype=torch.float64),
            drawn_margins=None if drawn is None else torch.from_numpy(drawn).to(self._dtype),
            logit_correction=selected.correction,
            rounding_noise=selected.noise,
            plan=selected.plan,
            host_rows=selected.rows,
            host_target_rows=ordered,
            host_sorted_slots=slots[by_class],
        )

    def _select(self, known: Ints, targets: Ints, ordered: Ints, number: int) -> _Selection:
        """Select the active rows, given the labels, and the targets among them in the order of the batch and by row."""
        rate = value_at(self._rate, number, self._steps_per_epoch)
        if rate == 1:
            rows = self._all_rows()
            return _Selection(targets, len(self._local_classes), rows, noise=self._noise(rows, number))
        if self._on_device:
            return self._plan(targets, ordered, number, rate)
        sample = self._sampled(known, ordered, number, rate)
        return _Selection(
            np.searchsorted(sample.rows, targets),
            len(sample.rows),
            sample.rows,
            self._logit_correction(sample),
            self._noise(sample.rows, number),
        )

    def _plan(self, targets: Ints, ordered: Ints, number: int, rate: float) -> _Selection:
        """Leave the sampled rows to the device."""
        count = num_sampled_classes(self._num_classes, rate)
        unique = _without_repeats(ordered)
        rounds, corrects = self._uses_stochastic_rounding, self._correction != "none"
        plan = plan_sample(
            step_strata(self._num_classes, count, self._seed, number, self._local_classes),
            unique,
            noise_key=rounding.row_key(self._seed, number) if rounds else None,
            correction=-math.log(count / self._num_classes) if corrects else None,
        )
        slots = plan.target_slots.numpy()[np.searchsorted(unique, targets)]
        return _Selection(slots, plan.num_active, plan=plan)

    def _validate_labels(self, labels: Tensor) -> Ints:
        expected = "[B] of the global batch, on cpu"
        check_labels(labels, expected)
        if labels.device.type != "cpu" or not len(labels):
            raise ValueError(f"labels: expected integers {expected}, got {describe_tensor(labels)}")
        known = labels.numpy().astype(np.int64)
        wrong = np.flatnonzero((known < IGNORE_LABEL) | (known >= self._num_classes))
        if len(wrong):
            raise InputError(
                f"image {wrong[0]} of the batch: expected a label from 0 to {self._num_classes - 1}, or {IGNORE_LABEL} to ignore it, "
                f"got {known[wrong[0]]}"
            )
        return known

    def _all_rows(self) -> Ints | None:
        return np.arange(len(self._local_classes)) if self._indexed else None

    def _sampled(self, known: Ints, targets: Ints, number: int, rate: float) -> _Sample:
        local_classes, always_active = self._local_classes, targets
        count = num_sampled_classes(self._num_classes, rate)
        if self._neighbors is not None:
            gathered = np.unique(known[known != IGNORE_LABEL])
            near, count = self._neighbors.select_hard_negatives(gathered, number, count)
            mine = near[
                np.searchsorted(near, local_classes.start) : np.searchsorted(near, local_classes.stop)
            ]
            always_active = union_sorted(mine - local_classes.start, targets)
        drawn = (
            sample_classes(self._num_classes, count, self._seed, number, local_classes) - local_classes.start
        )
        return _Sample(union_sorted(drawn, always_active), always_active, count / self._num_classes)

    def _logit_correction(self, sample: _Sample) -> Tensor | None:
        """Return log(1 / fraction) for sampled classes, which represent others, and 0 for always active ones."""
        if self._correction == "none":
            return None
        correction = np.where(np.isin(sample.rows, sample.always_active), 0.0, -math.log(sample.fraction))
        return torch.from_numpy(correction).to(self._dtype)

    def _noise(self, rows: Ints | None, number: int) -> Tensor | None:
        if not self._uses_stochastic_rounding:
            return None
        local_classes = self._local_classes
        classes = (
            np.arange(local_classes.start, local_classes.stop) if rows is None else rows + local_classes.start
        )
        return rounding.row_noise(classes, self._seed, number)


def num_sampled_classes(num_classes: int, rate: float) -> int:
    """Return the number of classes that all ranks sample in a step: max(1, round(rate * num_classes))."""
    return max(1, round(rate * num_classes))


def sample_classes(num_classes: int, count: int, seed: int, step: int, local_classes: range) -> Ints:
    """Return the classes of `local_classes` among the `count` sampled classes of a step, ascending, without repeats.

    They are those of `Strata`.
    """
    strata = step_strata(num_classes, count, seed, step, local_classes)
    drawn = np.concatenate([strata.rows(piece) for piece in strata.pieces()])
    drawn += local_classes.start
    return drawn


def step_strata(num_classes: int, count: int, seed: int, step: int, local_classes: range) -> Strata:
    """Return the strata of a step."""
    return Strata(num_classes, count, counter_rng.derive_key(seed, "sample", step), local_classes)


def union_sorted(drawn: Ints, targets: Ints) -> Ints:
    """Return the union of two ascending arrays, the first without repeats, in ascending order without repeats.

    np.union1d hashes, which takes 80 ms for 125,000 classes.
    """
    new = _without_repeats(targets)
    places = np.searchsorted(drawn, new)
    if len(drawn):
        absent = (places == len(drawn)) | (drawn.take(places, mode="clip") != new)
        new, places = new[absent], places[absent]
    return np.insert(drawn, places, new)


def _without_repeats(ascending: Ints) -> Ints:
    return ascending[np.flatnonzero(np.diff(ascending, prepend=-1))]
