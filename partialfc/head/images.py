"""What is computed of each image of a batch once all chunks of classes are through: the softmax's denominator, the loss,
its derivatives. Tensors in, tensors out, no state. Kernels stand behind these, see `kernels/`; these are the reference.

Legend: B images in the global batch, N of them with a class of this rank, D width, s the scale of the logits.
`out` and what ends in an underscore is memory that is written; nothing else is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.active import ActiveClasses
from partialfc.head.losses import TrainsNorms

FURTHEST = 80.0  # float32 holds exp of it


class Scale(NamedTuple):
    """Of a loss's logits."""

    scale: float  # s
    max_logit: float  # no logit is above it by more than log(1 / r)


class Derivatives(NamedTuple):
    """What there is of an image when the denominator is known."""

    loss: Tensor  # scalar, the mean over the valid images
    factor: Tensor  # [B] the loss's derivative by a negative's cosine is exp(z - shift) * factor
    # [k, N] its derivatives by what the k slopes are of: the targets' cosines, and what else there is
    targets: Tensor


def totals(
    total_: Tensor, logit: Tensor, classes: ActiveClasses, *, shift: Tensor | None, scale: Scale
) -> Tensor:
    """[2, B] doubles, to be summed over ranks: this rank's part of the sum of exp(z - max_logit), and its targets' logits.

    total_: [B] double, of the sum of exp(z - shift) over the negatives; logit: [N] the targets', / s; shift: [B], or None: 0.
    """
    logit = logit.double() * scale.scale
    # Doubles hold exp(z - max_logit): no maximum is exchanged.
    by = torch.zeros_like(total_) if shift is None else shift.double()
    total_.mul_((by - scale.max_logit).exp())
    total_.index_add_(0, classes.target_positions, (logit - scale.max_logit).exp())
    own = torch.zeros_like(total_).index_copy_(0, classes.target_positions, logit)
    return torch.stack([total_, own])


def derivatives(
    totals: Tensor,
    logit: Tensor,
    slopes: Tensor,
    classes: ActiveClasses,
    *,
    shift: Tensor | None,
    scale: Scale,
) -> Derivatives:
    """Of the loss, the mean over the valid images of -log softmax(z)[target].

    totals: [2, B] of all ranks; logit: [N] of this rank's targets, z / s; slopes: [k, N] its derivatives.
    """
    total, own = totals
    logit = logit.double() * scale.scale
    by = torch.zeros_like(total) if shift is None else shift.double()
    lse = total.log() + scale.max_logit  # [B]
    num_valid = max(1, len(classes.valid_positions))
    share = classes.valid.double() * (scale.scale / num_valid)
    # Far below the furthest where this rank has an exponential above 0; where it has none, inf times 0 would be nan.
    factor = share * (by - lse).clamp_max(FURTHEST).exp()
    lse_targets, share_targets = lse[classes.target_positions], share[classes.target_positions]
    targets = share_targets * torch.expm1(logit - lse_targets) * slopes.double()
    losses = torch.where(classes.valid, lse - own, 0.0)
    loss = losses.sum() / num_valid
    return Derivatives(loss.to(slopes.dtype), factor.to(slopes.dtype), targets.to(slopes.dtype))


def embedding_gradients(
    weighted_: Tensor, centers: Tensor, factor: Tensor, targets: Tensor, classes: ActiveClasses
) -> Tensor:
    """The loss's gradient [B, D] by the embeddings from this rank's classes, in place.

    weighted_: [B, D] of the sum of exp(z - shift) w over the negatives; centers: [N, D] of the targets, at length 1; factor:
    [B], targets: [N], as `derivatives` gives them.
    """
    weighted_.mul_(factor[:, None])
    return weighted_.index_add_(0, classes.target_positions, centers * targets[:, None])


def add_targets(
    d_unit_: Tensor, slots: Tensor, embeddings: Tensor, positions: Tensor, weights: Tensor, *, start: int
) -> None:
    """Add to the gradients [c, D] of a chunk's rows what comes of its targets: `weights` [N'] times the embeddings [B, D] at
    `positions`. slots: [N'] ascending, of their classes; `start` is that of the chunk's first row.
    """
    if len(slots):
        # accumulate: several images may be of one class; in a fixed order on a GPU, too, unlike index_add_
        pulls = embeddings.index_select(0, positions) * weights[:, None]
        d_unit_.index_put_((slots - start,), pulls, accumulate=True)


def penalty(loss: TrainsNorms, norms: Tensor, classes: ActiveClasses) -> tuple[Tensor, Tensor]:
    """The mean penalty over the valid images, the same scalar on every rank; and its derivative [B] by the norms of
    this rank's targets, 0 elsewhere.
    """
    num_valid = max(1, len(classes.valid_positions))
    value, slope = loss.penalty(norms)
    mean = value.index_select(0, classes.valid_positions).double().sum() / num_valid
    own = slope.index_select(0, classes.target_positions) / num_valid
    return mean.to(norms.dtype), torch.zeros_like(norms).index_copy_(0, classes.target_positions, own)
