"""Losses that ask of each class by itself whether an image is of it, over classes that are split between ranks.

Legend: B images in the global batch, V of them valid, N of them with a class of this rank, c classes in a chunk, D width, s
the scale, b the threshold.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from partialfc.head.active_rows import ActiveRows
from partialfc.head.chunk import without_targets
from partialfc.head.losses import Binary, Loss
from partialfc.head.results import Forward, Forwarded, Part, Targets
from partialfc.head.sharded import ShardedLoss
from partialfc.runtime import comm

_STRAIGHT = 50.0  # from here on softplus(x) is x, in doubles, too


class ShardedBinary(ShardedLoss):
    """The mean over the valid images of the loss that `Binary` tells. There is no denominator that ranks would have to know: one
    all-reduce of two numbers, the loss and its derivative by b. What pushes a class away is sigmoid(z - b) dz / d(s cos t).
    """

    def forward(
        self, loss: Loss, embeddings: Tensor, norms: Tensor | None, rows: ActiveRows, *, keep: bool
    ) -> Forward:
        """See ShardedLoss."""
        assert isinstance(loss, Binary)
        classes = rows.classes
        left = self._left(loss, embeddings, rows.num_active, keep)
        own = self._targets(left, norms, rows)
        total = torch.zeros((2, len(embeddings)), dtype=torch.float64, device=embeddings.device)
        weighted = self._accumulate(left, rows, total)
        share = 1 / max(1, len(classes.valid_positions))
        left.factor = classes.valid.to(embeddings.dtype) * (loss.weights.others * loss.scale * share)
        found = total.index_select(1, classes.valid_positions).sum(dim=1).mul_(loss.weights.others * share)
        found += self._own(loss, own, left, share)
        value, by_threshold = comm.sum_(found, self._group)
        left.by_threshold = -by_threshold
        gradient = self._operations.embedding_gradients(
            weighted, own.centers, left.factor, left.targets, classes
        )
        return Forward(value.to(embeddings.dtype), gradient, None, left)

    def take_state(self, left: Forwarded, weight: Tensor, lr: Tensor, finite: Tensor) -> None:
        """See ShardedLoss: the threshold takes a step."""
        assert left.by_threshold is not None
        threshold = left.loss.state["threshold"]
        left.loss_state = {"threshold": threshold - (lr * weight * left.by_threshold).to(threshold.dtype)}
        super().take_state(left, weight, lr, finite)

    def _own(self, loss: Binary, own: Targets, left: Forwarded, share: float) -> Tensor:
        """[2] doubles: the loss of this rank's targets, and minus its derivative by b; `left` gets that by their cosines."""
        apart = loss.state["threshold"].double() - loss.scale * own.logit.double()
        pulls = apart.sigmoid() * (loss.weights.own * share)
        left.targets = (-loss.scale * pulls * own.slopes[0]).to(own.logit.dtype)
        value = softplus(apart, threshold=_STRAIGHT).sum() * (loss.weights.own * share)
        return torch.stack([value, -pulls.sum()])

    def _weigh(self, logits_: Tensor, left: Forwarded, part: Part, total: Tensor | None, out: Tensor) -> None:
        """See ShardedLoss. total: [2, B] doubles, of the sums of softplus(z - b) and of sigmoid(z - b)."""
        loss = left.loss
        assert isinstance(loss, Binary)
        largest = self._largest(loss)
        left_out = None if largest is None else logits_ > largest
        slope = loss.raised(logits_)
        logits_.sub_(loss.state["threshold"])
        if left_out is not None:
            logits_.masked_fill_(left_out, -torch.inf)
        without_targets(logits_, part.places, self._lowest)
        share = (
            None if part.correction is None else part.correction.exp()[:, None]
        )  # of what a drawn class stands for
        if total is not None:
            losses = softplus(logits_, threshold=_STRAIGHT)
            total[0] += (losses if share is None else losses * share).sum(dim=0)
        logits_.sigmoid_()
        if share is not None:
            logits_.mul_(share)
        if total is not None:
            total[1] += logits_.sum(dim=0)
        if slope is not None:
            logits_.mul_(slope)
        if out is not logits_:
            out.copy_(logits_)
