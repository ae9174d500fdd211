"""Reference operations on the logits of a chunk and on the images of the batch, in plain torch.

Tensors in, tensors out, no state. `triton_logits.py` and `triton_images.py` implement the same functions in fewer
passes over memory. Only `out` and arguments that end in an underscore are written.

Shapes:
    B: images in the global batch
    c: classes of a chunk
    K: centers of each class
    S: active classes of this rank
    D: components of a center
    s: the scale
"""

from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.losses import HardNegativeRule
from partialfc.head.sampling import ActiveClasses, ChunkTargets

MAX_EXPONENT = 80.0  # float32 holds exp of it


class LogitScale(NamedTuple):
    """Scale and bound of logits."""

    scale: float  # s
    max_logit: float  # upper bound of the logits, apart from a correction of log(1 / r)


class SoftmaxGradient(NamedTuple):
    """Loss and its derivatives."""

    loss: Tensor  # scalar, mean over the valid images
    image_factors: Tensor  # [B], factor of the logit gradients of negatives
    target_factors: (
        Tensor  # [k, B], derivatives by cosine (and norm) of the target; 0 if it is on another rank
    )


def transform_negatives_(
    logits_: Tensor, largest: float | None, correction: Tensor | None, hard: HardNegativeRule | None
) -> Tensor | None:
    """Replace logits s cos t of negatives by those of the loss: -inf above `largest`, raised if hard, corrected.

    Returns:
        Their derivatives by s cos t, `[c, B]`, or None if they are 1.
    """
    if largest is not None:
        logits_.masked_fill_(logits_ > largest, -torch.inf)
    slope = None
    if hard is not None:
        raised, cosine = logits_ > hard.logit_threshold, logits_ / hard.scale
        slope = torch.where(raised, hard.level + 2 * cosine, 1.0)
        torch.where(raised, logits_ * (hard.level + cosine), logits_, out=logits_)
    if correction is not None:
        logits_.add_(correction[:, None])
    return slope


def mask_targets_(values_: Tensor, targets: ChunkTargets, instead: float) -> Tensor:
    """Set `values_` `[c, B]` to `instead` at the targets."""
    if len(targets.images):
        rows, inside = targets.rows()
        place = rows, targets.images
        values_.index_put_(place, values_[place].masked_fill_(inside, instead))
    return values_


def exp_logits(
    logits_: Tensor,
    targets: ChunkTargets,
    correction: Tensor | None,
    *,
    total_: Tensor | None,
    out: Tensor,
    shift: Tensor | None,
    largest: float | None,
    hard: HardNegativeRule | None,
) -> None:
    """Compute logit gradients exp(z - shift) dz / d(s cos t) of a chunk for transformed logits z, 0 at the targets.

    Args:
        logits_: Logits s cos t `[c, B]`, overwritten.
        targets: Targets of the chunk.
        correction: Term added to the logits, `[c]`, or None.
        total_: Accumulator of the sums of exp(z - shift), float64 `[B]`, or None.
        out: Logit gradients, `[c, B]`; may be `logits_`.
        shift: Term subtracted from the logits, `[B]`; None for 0.
        largest: Largest logit of a negative that takes part; None for no limit.
        hard: Rule for hard negatives, or None.
    """
    slope = transform_negatives_(logits_, largest, correction, hard)
    if shift is not None:
        logits_.sub_(shift)
    mask_targets_(logits_.exp_(), targets, 0.0)
    if total_ is not None:
        total_ += logits_.sum(dim=0)
    if slope is not None:
        logits_.mul_(slope)
    if out is not logits_:
        out.copy_(logits_)


def select_nearest(logits: Tensor, subcenters: int, *, out: Tensor, nearest_: Tensor) -> None:
    """Select the largest of K logits per class, `[c K, B]` -> `out` `[c, B]`; its index goes to `nearest_`."""
    each = logits.view(-1, subcenters, logits.shape[1])
    found = each.max(dim=1)
    nearest_.copy_(found.indices)
    out.copy_(found.values)


def spread_to_nearest(weights: Tensor, nearest_subcenters: Tensor, subcenters: int, *, out: Tensor) -> Tensor:
    """Return gradients of classes `[c, B]` as gradients of their centers `[c K, B]`, 0 except for the nearest ones."""
    each = out.view(-1, subcenters, weights.shape[1])
    for place in range(subcenters):
        torch.mul(weights, nearest_subcenters == place, out=each[:, place])
    return out


def softmax_totals(
    total_: Tensor, logit: Tensor, classes: ActiveClasses, *, shift: Tensor | None, scale: LogitScale
) -> Tensor:
    """Return this rank's sums of exp(z - max_logit), and the logits of its targets, float64 `[2, B]`.

    Args:
        total_: Sums of exp(z - shift) over the negatives, float64 `[B]`, overwritten.
        logit: Logits of the targets divided by s, `[B]`.
        classes: Active classes of the step.
        shift: Shift of the exponents, `[B]`; None for 0.
        scale: Scale and bound of the logits.
    """
    logit = logit.double() * scale.scale
    # float64 represents exp(z - max_logit), so that ranks need not exchange a maximum.
    by = torch.zeros_like(total_) if shift is None else shift.double()
    has_target = classes.has_target
    total_.mul_((by - scale.max_logit).exp())
    total_ += torch.where(has_target, (logit - scale.max_logit).exp(), 0.0)
    return torch.stack([total_, torch.where(has_target, logit, 0.0)])


def softmax_gradient(
    totals: Tensor,
    logit: Tensor,
    slopes: Tensor,
    classes: ActiveClasses,
    *,
    shift: Tensor | None,
    scale: LogitScale,
) -> SoftmaxGradient:
    """Return the mean of -log softmax(z)[target] over the valid images, and its derivatives.

    Args:
        totals: Sum of `softmax_totals` over the ranks, `[2, B]`.
        logit: Logits of this rank's targets divided by s, `[B]`.
        slopes: Derivatives of `logit`, `[k, B]`.
        classes: Active classes of the step.
        shift: Shift of the exponents, `[B]`; None for 0.
        scale: Scale and bound of the logits.
    """
    total, own = totals
    logit = logit.double() * scale.scale
    by = torch.zeros_like(total) if shift is None else shift.double()
    lse = total.log() + scale.max_logit  # [B]
    share = classes.valid.double() * (scale.scale / classes.num_valid)
    # The clamp has no effect if an exponential of this rank is above 0; otherwise it avoids inf * 0.
    factor = share * (by - lse).clamp_max(MAX_EXPONENT).exp()
    targets = torch.where(classes.has_target, share * torch.expm1(logit - lse) * slopes.double(), 0.0)
    loss = torch.where(classes.valid, lse - own, 0.0).sum() / classes.num_valid
    kind = slopes.dtype
    return SoftmaxGradient(loss.to(kind), factor.to(kind), targets.to(kind))


def embedding_gradients_(
    weighted_: Tensor, centers: Tensor, image_factors: Tensor, target_factors: Tensor
) -> Tensor:
    """Turn the weighted sum of centers into the gradient of the embeddings, in place.

    Args:
        weighted_: Sum of logit gradients times centers, `[B, D]`.
        centers: Centers of the targets, `[B, D]`.
        image_factors: Factors of `SoftmaxGradient`, `[B]`.
        target_factors: Factors of the targets, `[B]`, 0 if the target is on another rank.

    Returns:
        `weighted_`.
    """
    return weighted_.mul_(image_factors[:, None]).add_(centers * target_factors[:, None])


def add_target_gradients_(
    d_unit_: Tensor, targets: ChunkTargets, embeddings: Tensor, weights: Tensor
) -> None:
    """Add the contribution of the targets to the gradients of a chunk's centers.

    Args:
        d_unit_: Gradients of the centers, `[c K, D]`.
        targets: Targets of the chunk among the centers; `size` is c K.
        embeddings: Features, `[B, D]`.
        weights: Factors of the embeddings, `[B]`.
    """
    if not len(targets.images):
        return
    rows, inside = targets.rows()
    # Images without a target here add zeros to distinct rows, since additions to one row are serial on a GPU.
    anywhere = torch.arange(len(rows), device=rows.device) % targets.size
    images = targets.images
    weighted_embeddings = embeddings.index_select(0, images) * weights.index_select(0, images)[:, None]
    weighted_embeddings = torch.where(inside[:, None], weighted_embeddings, 0.0)
    # Several images may have one class. Unlike index_add_, this is deterministic on a GPU.
    d_unit_.index_put_((torch.where(inside, rows, anywhere),), weighted_embeddings, accumulate=True)
