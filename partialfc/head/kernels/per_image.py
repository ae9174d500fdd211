"""Triton kernels of a batch's images: what `head/images.py` does in dozens of passes over [B], in one each.

Legend: B images in the global batch, N of them with a class of this rank, D width.
"""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.active import ActiveClasses
from partialfc.head.images import FURTHEST, Derivatives, Scale
from partialfc.head.kernels.launching import TYPES, launch
from partialfc.head.kernels.tiles import ROWS, tile

_IMAGES = 128  # of a program


def totals(
    total_: Tensor, logit: Tensor, classes: ActiveClasses, *, shift: Tensor | None, scale: Scale
) -> Tensor:
    """As `images.totals`."""
    batch = len(total_)
    out = total_.new_empty(2, batch)
    launch(
        _totals,
        (triton.cdiv(batch, _IMAGES),),
        total_,
        logit,
        classes.image_targets,
        shift,
        out,
        batch,
        float(scale.scale),
        float(scale.max_logit),
        IMAGES=_IMAGES,
    )
    return out


def derivatives(
    totals: Tensor,
    logit: Tensor,
    slopes: Tensor,
    classes: ActiveClasses,
    *,
    shift: Tensor | None,
    scale: Scale,
) -> Derivatives:
    """As `images.derivatives`."""
    batch = totals.shape[1]
    factor, targets, losses = slopes.new_empty(batch), torch.empty_like(slopes), torch.empty_like(totals[0])
    launch(
        _derivatives,
        (triton.cdiv(batch, _IMAGES),),
        totals,
        logit,
        slopes,
        classes.image_targets,
        classes.valid.view(torch.uint8),
        shift,
        factor,
        targets,
        losses,
        batch,
        max(1, len(classes.valid_positions)),
        len(logit),
        float(scale.scale),
        float(scale.max_logit),
        KINDS=len(slopes),
        FURTHEST=FURTHEST,
        IMAGES=_IMAGES,
    )
    return Derivatives(losses.sum().to(slopes.dtype), factor, targets)


def embedding_gradients(
    weighted_: Tensor, centers: Tensor, factor: Tensor, targets: Tensor, classes: ActiveClasses
) -> Tensor:
    """As `images.embedding_gradients`."""
    batch, width = weighted_.shape
    launch(
        _embedding_gradients,
        (triton.cdiv(batch, ROWS),),
        weighted_,
        centers,
        factor,
        targets,
        classes.image_targets,
        batch,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ROWS=ROWS,
    )
    return weighted_


def add_targets(
    d_unit_: Tensor, slots: Tensor, embeddings: Tensor, positions: Tensor, weights: Tensor, *, start: int
) -> None:
    """As `images.add_targets`; the images of a class are added in their order."""
    if not len(slots):
        return
    width = d_unit_.shape[1]
    launch(
        _add_targets,
        (len(slots),),
        d_unit_,
        slots,
        embeddings,
        positions,
        weights,
        len(slots),
        start,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        COMPUTED=TYPES[d_unit_.dtype],
    )


@triton.jit(do_not_specialize=["batch"])
def _totals(
    total, logits, owns, shift, out, batch, scale, max_logit, IMAGES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    live = image < batch
    target = tl.load(owns + image, mask=live, other=-1)
    logit = tl.load(logits + target, mask=target >= 0, other=0.0).to(tl.float64) * scale
    by = logit * 0
    if shift is not None:
        by = tl.load(shift + image, mask=live, other=0.0).to(tl.float64)
    negatives = tl.load(total + image, mask=live, other=0.0) * tl.exp(by - max_logit)
    own = tl.where(target >= 0, tl.exp(logit - max_logit), 0.0)
    tl.store(out + image, negatives + own, mask=live)
    tl.store(out + batch + image, logit, mask=live)


@triton.jit(do_not_specialize=["batch", "num_valid", "num_targets"])
def _derivatives(
    totals, logits, slopes, owns, valid, shift, factors, targets, losses, batch, num_valid, num_targets,
    scale, max_logit, KINDS: tl.constexpr, FURTHEST: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    live = image < batch
    target = tl.load(owns + image, mask=live, other=-1)
    counted = tl.load(valid + image, mask=live, other=0) != 0
    lse = tl.log(tl.load(totals + image, mask=live, other=1.0)) + max_logit
    own = tl.load(totals + batch + image, mask=live, other=0.0)
    by = lse * 0
    if shift is not None:
        by = tl.load(shift + image, mask=live, other=0.0).to(tl.float64)
    part = tl.where(counted, 1.0, 0.0).to(tl.float64) / num_valid.to(tl.float64)
    factor = part * scale * tl.exp(tl.minimum(by - lse, FURTHEST))
    tl.store(factors + image, factor.to(factors.dtype.element_ty), mask=live)
    tl.store(losses + image, tl.where(counted, (lse - own) * part, 0.0), mask=live)
    logit = tl.load(logits + target, mask=target >= 0, other=0.0).to(tl.float64) * scale
    pull = part * scale * (tl.exp(logit - lse) - 1.0)  # double: 1 is not lost in it
    for kind in tl.static_range(KINDS):
        place = kind * num_targets + target
        slope = tl.load(slopes + place, mask=target >= 0, other=0.0).to(tl.float64)
        tl.store(targets + place, (pull * slope).to(targets.dtype.element_ty), mask=target >= 0)


@triton.jit(do_not_specialize=["batch"])
def _embedding_gradients(
    weighted, centers, factors, targets, owns, batch,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    image, column, live, within = tile(batch, WIDTH, PADDED, ROWS)
    place = image[:, None] * WIDTH + column[None, :]
    gradient = (
        tl.load(weighted + place, mask=within, other=0.0)
        * tl.load(factors + image, mask=live, other=0.0)[:, None]
    )
    target = tl.load(owns + image, mask=live, other=-1)
    has = target >= 0
    own = tl.load(centers + target[:, None] * WIDTH + column[None, :], mask=within & has[:, None], other=0.0)
    gradient += own * tl.load(targets + target, mask=has, other=0.0)[:, None]
    tl.store(weighted + place, gradient, mask=within)


@triton.jit(do_not_specialize=["size", "start"])
def _add_targets(
    gradients, slots, embeddings, positions, weights, size, start,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    slot = tl.load(slots + first)
    before = tl.load(slots + first - 1, mask=first > 0, other=-1)
    if slot != before:  # the first image of its class adds those of all
        column = tl.arange(0, PADDED)
        within = column < WIDTH
        out = gradients + (slot - start) * WIDTH + column
        total = tl.load(out, mask=within, other=0.0)
        image = first
        same = slot
        while same == slot:
            position = tl.load(positions + image)
            weight = tl.load(weights + image)
            total += tl.load(embeddings + position * WIDTH + column, mask=within, other=0.0) * weight
            image += 1
            same = tl.load(slots + image, mask=image < size, other=-1)
        tl.store(out, total.to(COMPUTED), mask=within)
