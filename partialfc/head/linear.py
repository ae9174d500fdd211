"""The softmax of a linear layer over classes that are split between ranks: logits without a bound.

Legend: B images in the global batch, N of them with a class of this rank, c classes in a chunk, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.head.active_rows import ActiveRows
from partialfc.head.chunk import negatives, without_targets
from partialfc.head.losses import Loss
from partialfc.head.results import Forward, Forwarded, Targets
from partialfc.head.sharded import part_of
from partialfc.head.softmax import ShardedSoftmax
from partialfc.runtime import comm


class ShardedLinear(ShardedSoftmax):
    """The mean over the valid images of -log softmax(w x + b)[target]. The largest logit of each image is exchanged, and taken
    off all of them: an all-reduce of [B] more than ShardedSoftmax has.
    """

    def forward(
        self, loss: Loss, embeddings: Tensor, norms: Tensor | None, rows: ActiveRows, *, keep: bool
    ) -> Forward:
        """See ShardedLoss. embeddings: [B, D] as they are, the last component 1."""
        classes, positions = rows.classes, rows.classes.target_positions
        left = self._left(loss, embeddings, rows.num_active, keep)
        own = self._targets(left, norms, rows)
        left.shift = self._largest_logits(left, own, rows)
        total = torch.zeros(len(embeddings), dtype=torch.float64, device=embeddings.device)
        weighted = self._accumulate(left, rows, total)
        shift, logit = left.shift.double(), own.logit.double()
        total.index_add_(0, positions, (logit - shift[positions]).exp())
        logits = torch.zeros_like(total).index_copy_(0, positions, logit)
        total, logits = comm.sum_(torch.stack([total, logits]), self._group)
        share = classes.valid.double() / max(1, len(classes.valid_positions))
        lse = total.log() + shift
        left.factor = torch.where(classes.valid, share * (shift - lse).exp(), 0.0).to(embeddings.dtype)
        left.targets = (share[positions] * torch.expm1(logit - lse[positions])).to(embeddings.dtype)
        value = torch.where(classes.valid, (lse - logits) * share, 0.0).sum()
        gradient = self._operations.embedding_gradients(
            weighted, own.centers, left.factor, left.targets, classes
        )
        return Forward(value.to(embeddings.dtype), gradient, None, left)

    def _directions(self, vectors: Tensor) -> Tensor:
        """See ShardedLoss: without the biases."""
        return normalize(vectors[:, :-1])

    def _largest_logits(self, left: Forwarded, own: Targets, rows: ActiveRows) -> Tensor:
        """[B] of all classes of all ranks."""
        largest = torch.full_like(left.embeddings[:, 0], -torch.inf)
        largest.index_copy_(0, rows.classes.target_positions, own.logit)
        for chunk, images in self._chunks(rows):
            _, found, *_ = self._logits(left, rows, chunk)
            part = part_of(rows.classes, chunk, images)
            negatives(found, None, part.correction, None)
            without_targets(found, part.places, self._lowest)
            torch.maximum(largest, found.amax(dim=0), out=largest)
        return comm.max_(largest, self._group)
