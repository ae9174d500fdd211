"""Losses over classes that are split between ranks and worked on chunk by chunk: what all of them have in common.

Legend: B images in the global batch, N of them with a class of this rank, S active classes on this rank, c of them in
a chunk, K centres of each, D width, s the scale.

A chunk's rows are read twice in a step: forward, for their logits and for their part of the sum of p w, of which the
embeddings' gradient is made, p being what an image pushes a class away with; and after the backward, for their own
gradient and step. The weights p [S, B] are kept in between where they fit a budget, else computed again. What each needs of
a norm, of the loss's denominator and of the scale is multiplied into rows [c K, D] and embeddings [B, D], and never into
[c, B].
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.head.active import ActiveClasses
from partialfc.head.active_rows import ActiveRows, UnitRows
from partialfc.head.chunk import Places, without_targets
from partialfc.head.chunking import chunk_of
from partialfc.head.kernels import Operations
from partialfc.head.losses import Batch, Loss, TrainsNorms
from partialfc.head.products import Products
from partialfc.head.results import Forward, Forwarded, Kept, Part, Targets
from partialfc.head.scratch import ScratchMemory
from partialfc.head.subcenters import nearest, spread
from partialfc.runtime import comm
from partialfc.runtime.comm import Group


class ShardedLoss(ABC):
    """The loss over one head's classes; keeps its memory from step to step."""

    def __init__(
        self,
        *,
        width: int,
        subcenters: int,
        interclass_threshold: float,
        logits_budget: int,  # bytes
        products: Products,
        operations: Operations,
        group: Group,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._width, self._centers, self._group = width, subcenters, group
        self._threshold = interclass_threshold
        self._budget, self._operations = logits_budget, operations
        self._products, self._device, self._dtype = products, device, dtype
        self._kept, self._scratch = ScratchMemory(device), ScratchMemory(device)
        # the first chunk's, of a forward to come
        self._begun: tuple[ActiveRows, UnitRows, Tensor] | None = None
        self._lowest = torch.full((), -torch.inf, dtype=dtype, device=device)

    def begin(self, rows: ActiveRows, batch: int, *, keep: bool) -> None:
        """Do of the forward of B images what wants none of them: bring the first chunk's rows to length 1. Needs not be
        called.
        """
        for chunk, _ in islice(self._chunks(rows), 1):
            kept = self._memory(rows.num_active, batch, keep)
            self._begun = rows, *self._unit(rows, chunk, kept)

    @abstractmethod
    def forward(
        self, loss: Loss, embeddings: Tensor, norms: Tensor | None, rows: ActiveRows, *, keep: bool
    ) -> Forward:
        """The loss, the same scalar on every rank, and its gradient.

        embeddings: [B, D] of length 1; norms: [B] that they had. Negatives with a cosine above the threshold (0: none) are
        left out. keep: False where no backward follows.
        """

    @abstractmethod
    def _weigh(self, logits_: Tensor, left: Forwarded, part: Part, total: Tensor | None, out: Tensor) -> None:
        """`out` [c, B] = what images push a chunk's classes away with, 0 at the targets, from `logits_` [c, B], s cos t, which is
        overwritten, and may be `out`; `total` gets what the loss needs of it added.
        """

    def update(self, left: Forwarded, rows: ActiveRows, weight: Tensor, lr: Tensor, finite: Tensor) -> None:
        """Take one optimizer step of the rows, by `weight` times the gradient of the loss that `left` is of.

        weight, lr: scalars, lr 0 in a step that is to change nothing, as the bool scalar `finite` says.
        """
        classes = rows.classes
        pulls = (left.embeddings * (left.factor * weight)[:, None]).to(self._products.of_exponentials)
        target_weights = left.targets * weight  # [N]
        for chunk, images in self._chunks(rows):
            if left.kept is not None:
                kept = left.kept.of(chunk)
            else:
                _, kept = self._kept_of(left, rows, chunk, images)
            d_unit = self._scratch.get("d_unit", (len(kept.inverse), self._width), self._dtype)
            self._products.into(d_unit, self._each(kept), pulls)
            self._operations.add_targets(
                d_unit,
                left.target_slots[images],
                left.embeddings,
                classes.target_positions[images],
                target_weights[images],
                start=chunk.start * self._centers,
            )
            rows.update_chunk(chunk, d_unit, kept.inverse, lr, finite)

    def take_state(self, left: Forwarded, weight: Tensor, lr: Tensor, finite: Tensor) -> None:
        """The step is taken, where `finite` is true: the loss has seen its batch. weight, lr: as of `update`."""
        for name, value in left.loss_state.items():
            old = left.loss.state[name]
            old.copy_(torch.where(finite, value, old))

    def cosines(self, left: Forwarded, rows: ActiveRows) -> tuple[Tensor, Tensor]:
        """The cosine of every image [B] with its own class's centre, and its largest with another active one; -inf where
        there is none. The same on every rank. One all-reduce of [2, B]. Changes nothing.
        """
        classes, embeddings = rows.classes, self._directions(left.embeddings)
        found = embeddings.new_full((2, len(embeddings)), -torch.inf)
        for chunk, images in self._chunks(rows):
            each = self._directions(rows.read_chunk(chunk)) @ embeddings.T  # [c K, B]
            cosine = each.view(-1, self._centers, len(embeddings)).amax(dim=1)  # [c, B]
            own = part_of(classes, chunk, images).places
            found[0, own.images] = cosine[own.rows_and_images()]
            without_targets(cosine, own, self._lowest)
            torch.maximum(found[1], cosine.amax(dim=0), out=found[1])
        target, nearest = comm.max_(found, self._group)
        return target, nearest

    def _directions(self, vectors: Tensor) -> Tensor:
        """Of embeddings [n, D], or of centres: at length 1."""
        return normalize(vectors)

    def _left(self, loss: Loss, embeddings: Tensor, num_active: int, keep: bool) -> Forwarded:
        nothing = embeddings.new_empty(0)
        return Forwarded(
            loss=loss,
            embeddings=embeddings,
            scaled=(embeddings * loss.scale).to(self._products.of_logits),
            shift=None,
            factor=nothing,
            targets=nothing,
            target_slots=nothing,
            kept=self._memory(num_active, len(embeddings), keep),
            hard=None,
            loss_state={},
        )

    def _memory(self, num_active: int, batch: int, keep: bool) -> Kept | None:
        """The same for every step; None where nothing is kept."""
        kind, several = self._products.of_exponentials, self._centers > 1
        if not keep or num_active * batch * (kind.itemsize + several) > self._budget:
            return None
        return Kept(
            self._kept.get("weights", (num_active, batch), kind),
            self._kept.get("winners", (num_active, batch), torch.uint8) if several else None,
            self._kept.get("inverse", (num_active * self._centers, 1), self._dtype),
        )

    def _targets(self, left: Forwarded, norms: Tensor | None, rows: ActiveRows) -> Targets:
        loss, classes = left.loss, rows.classes
        centers, angle, left.target_slots = rows.target_angles(
            classes.target_slots, left.embeddings, classes.target_positions
        )
        cosines = self._everyones(angle.cos(), classes) if loss.needs_cosines else None
        batch = Batch(classes.valid_positions, classes.drawn_margins, cosines, norms)
        left.loss_state = loss.next_state(batch)
        left.hard = loss.hard_negatives(batch, left.loss_state)
        margins = loss.margins(batch, left.loss_state)
        if margins is not None:
            margins = margins.index_select(0, classes.target_positions)
        logit, slope = loss.targets(angle, margins)
        if norms is None or not isinstance(loss, TrainsNorms):
            return Targets(centers, logit, slope[None])
        own_norms = norms.index_select(0, classes.target_positions)
        return Targets(centers, logit, torch.stack([slope, loss.by_norm(angle, margins, own_norms)]))

    def _everyones(self, cosine: Tensor, classes: ActiveClasses) -> Tensor:
        """The target cosines [B] of the whole batch, from this rank's [N]."""
        alone = cosine.new_zeros(len(classes.valid)).index_copy_(0, classes.target_positions, cosine)
        return comm.sum_(alone, self._group)

    def _largest(self, loss: Loss) -> float | None:
        """The largest logit of a negative that is not left out; None: any."""
        return self._threshold * loss.scale if self._threshold else None

    def _accumulate(self, left: Forwarded, rows: ActiveRows, total: Tensor) -> Tensor:
        """The sum [B, D] of what pushes classes away, times their centres; `total` gets what `_weigh` adds."""
        weighted = torch.zeros_like(left.embeddings)
        for chunk, images in self._chunks(rows):
            unit, kept = self._kept_of(left, rows, chunk, images, total)
            self._products.added_to(weighted, self._each(kept).T, unit.for_sums)
        return weighted

    def _kept_of(
        self, left: Forwarded, rows: ActiveRows, chunk: slice, images: slice, total: Tensor | None = None
    ) -> tuple[UnitRows, Kept]:
        """A chunk's centres, and what there is to keep of it; `total`: see `_weigh`."""
        unit, found, winners, inverse = self._logits(left, rows, chunk)
        kept, kind = found, self._products.of_exponentials
        if found.dtype != kind and left.kept is not None:
            kept = left.kept.weights[chunk]
        elif found.dtype != kind:
            kept = self._scratch.get("weights", tuple(found.shape), kind)
        self._weigh(found, left, part_of(rows.classes, chunk, images), total, kept)
        return unit, Kept(kept, winners, inverse)

    def _logits(
        self, left: Forwarded, rows: ActiveRows, chunk: slice
    ) -> tuple[UnitRows, Tensor, Tensor | None, Tensor]:
        """A chunk's centres at length 1; s cos t [c, B] of the nearest of each class, those of the targets too, in the memory
        of the weights where these are of their type; which these are; and 1 / lengths [c K, 1].
        """
        mine = None if left.kept is None else left.kept.of(chunk)
        shape = chunk.stop - chunk.start, len(left.embeddings)
        if mine is not None and mine.weights.dtype == self._dtype:
            out = mine.weights
        else:
            out = self._scratch.get("logits", shape, self._dtype)
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is rows and chunk.start == 0:
            _, unit, inverse = begun
        else:
            unit, inverse = self._unit(rows, chunk, left.kept)
        if self._centers == 1:
            return unit, self._products.into(out, unit.for_logits, left.scaled.T), None, inverse
        winners = self._scratch.get("winners", shape, torch.uint8) if mine is None else mine.winners
        assert winners is not None
        each = self._scratch.get("each", (len(inverse), shape[1]), self._dtype)
        self._products.into(each, unit.for_logits, left.scaled.T)
        nearest(each, self._centers, out=out, winners_=winners)
        return unit, out, winners, inverse

    def _each(self, kept: Kept) -> Tensor:
        """A chunk's weights [c K, B] by centres: those of images that have another nearer one are 0."""
        if kept.winners is None:
            return kept.weights
        shape = len(kept.inverse), kept.weights.shape[1]
        out = self._scratch.get("spread", shape, kept.weights.dtype)
        return spread(kept.weights, kept.winners, self._centers, out=out)

    def _unit(self, rows: ActiveRows, chunk: slice, kept: Kept | None) -> tuple[UnitRows, Tensor]:
        """A chunk's centres at length 1, and 1 / lengths [c K, 1], in the memory of what is kept, if there is any."""
        if kept is None:
            size = (chunk.stop - chunk.start) * self._centers
            inverse = self._scratch.get("inverse", (size, 1), self._dtype)
        else:
            inverse = kept.of(chunk).inverse
        return rows.unit_chunk(chunk, inverse_=inverse), inverse

    def _chunks(self, rows: ActiveRows) -> Iterator[tuple[slice, slice]]:
        """The chunks of the S active classes, each with those of the N images whose class is among it."""
        batch = len(rows.classes.valid)
        size = chunk_of(self._width, batch, self._device.type, self._dtype.itemsize, self._centers)
        for start in range(0, rows.num_active, size):
            stop = min(start + size, rows.num_active)
            yield slice(start, stop), rows.classes.targets_of(start, stop)


def part_of(classes: ActiveClasses, chunk: slice, images: slice) -> Part:
    """Of a chunk of active classes. images: those of the N whose class is in it."""
    slots, positions = classes.target_slots[images], classes.target_positions[images]
    correction = None if classes.logit_correction is None else classes.logit_correction[chunk]
    return Part(Places(slots, positions, classes.image_slots, chunk.start), correction)
