"""Softmax cross-entropy with a margin, over classes that are split between ranks.

Legend: B images in the global batch, N of them with a class of this rank, S active classes on this rank, c of them in
a chunk, D width, s the scale.
"""

import torch
from torch import Tensor

from partialfc.head.active_rows import ActiveRows
from partialfc.head.chunk import negatives, without_targets
from partialfc.head.images import Scale, penalty
from partialfc.head.losses import Loss, TrainsNorms
from partialfc.head.results import Forward, Forwarded, Part
from partialfc.head.sharded import ShardedLoss, part_of
from partialfc.runtime import comm

_UNSHIFTED_SCALE = 64.0  # up to here exp(z), and its sum over any number of classes, fit float32 as they are


class ShardedSoftmax(ShardedLoss):
    """The mean over the valid images of -log softmax(logits)[target]. What pushes a class away is exp(z - shift).

    One all-reduce of [2, B] doubles, one more of [B] where the loss needs all cosines.
    """

    def forward(
        self, loss: Loss, embeddings: Tensor, norms: Tensor | None, rows: ActiveRows, *, keep: bool
    ) -> Forward:
        """See ShardedLoss."""
        classes, operations = rows.classes, self._operations
        left = self._left(loss, embeddings, rows.num_active, keep)
        own = self._targets(left, norms, rows)
        left.shift = self._shift(left, rows)
        total = torch.zeros(len(embeddings), dtype=torch.float64, device=embeddings.device)
        weighted = self._accumulate(left, rows, total)
        # What follows goes below float32's smallest number.
        scale = {"shift": left.shift, "scale": Scale(loss.scale, loss.max_logit)}
        totals = comm.sum_(operations.totals(total, own.logit, classes, **scale), self._group)
        found = operations.derivatives(totals, own.logit, own.slopes, classes, **scale)
        left.factor, left.targets = found.factor, found.targets[0]
        gradient = operations.embedding_gradients(weighted, own.centers, left.factor, left.targets, classes)
        if norms is None or not isinstance(loss, TrainsNorms):
            return Forward(found.loss, gradient, None, left)
        added, by_norm = penalty(loss, norms, classes)
        by_norm.index_add_(0, classes.target_positions, found.targets[1])
        return Forward(found.loss + added, gradient, by_norm, left)

    def _shift(self, left: Forwarded, rows: ActiveRows) -> Tensor | None:
        """What is taken off an image's logits before exp: the largest negative's on this rank; None if any fits."""
        highest = left.loss.max_logit
        if highest <= _UNSHIFTED_SCALE:
            return None
        if left.hard is not None and highest <= 2 * _UNSHIFTED_SCALE:
            # Above it only raised logits lie. Those so far below that nothing is left of them are no part of the sum.
            return torch.full_like(left.embeddings[:, 0], highest - _UNSHIFTED_SCALE)
        largest = torch.full_like(left.embeddings[:, 0], -highest)
        for chunk, images in self._chunks(rows):
            _, found, *_ = self._logits(left, rows, chunk)
            part = part_of(rows.classes, chunk, images)
            negatives(found, self._largest(left.loss), part.correction, left.hard)
            without_targets(found, part.places, self._lowest)
            torch.maximum(largest, found.amax(dim=0), out=largest)
        return largest

    def _weigh(self, logits_: Tensor, left: Forwarded, part: Part, total: Tensor | None, out: Tensor) -> None:
        """See ShardedLoss. total: [B] double, of the sum of exp(z - shift)."""
        self._operations.exponentials(
            logits_,
            part.places,
            shift=left.shift,
            largest=self._largest(left.loss),
            correction=part.correction,
            hard=left.hard,
            total_=total,
            out=out,
        )
