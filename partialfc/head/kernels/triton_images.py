"""Triton kernels of the images of the batch: one kernel for each function of `torch_ops`.

Shapes:
    B: images in the global batch
    D: components of a center
"""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.kernels.torch_ops import MAX_EXPONENT, LogitScale, SoftmaxGradient
from partialfc.head.kernels.triton_rows import ROWS, TYPES, launch, tile
from partialfc.head.sampling import ActiveClasses, ChunkTargets

_IMAGES = 128  # of a program


def softmax_totals(
    total_: Tensor, logit: Tensor, classes: ActiveClasses, *, shift: Tensor | None, scale: LogitScale
) -> Tensor:
    """Run `torch_ops.softmax_totals` in one kernel."""
    batch = len(total_)
    out = total_.new_empty(2, batch)
    launch(
        _softmax_totals,
        (triton.cdiv(batch, _IMAGES),),
        total_,
        logit,
        classes.target_slots,
        shift,
        out,
        batch,
        float(scale.scale),
        float(scale.max_logit),
        IMAGES=_IMAGES,
    )
    return out


def softmax_gradient(
    totals: Tensor,
    logit: Tensor,
    slopes: Tensor,
    classes: ActiveClasses,
    *,
    shift: Tensor | None,
    scale: LogitScale,
) -> SoftmaxGradient:
    """Run `torch_ops.softmax_gradient` in one kernel."""
    batch = totals.shape[1]
    factors, targets, losses = slopes.new_empty(batch), torch.empty_like(slopes), torch.empty_like(totals[0])
    launch(
        _softmax_gradient,
        (triton.cdiv(batch, _IMAGES),),
        totals,
        logit,
        slopes,
        classes.target_slots,
        classes.valid.view(torch.uint8),
        classes.num_valid,
        shift,
        factors,
        targets,
        losses,
        batch,
        float(scale.scale),
        float(scale.max_logit),
        KINDS=len(slopes),
        MAX_EXPONENT=MAX_EXPONENT,
        IMAGES=_IMAGES,
    )
    return SoftmaxGradient(losses.sum().to(slopes.dtype), factors, targets)


def embedding_gradients_(
    weighted_: Tensor, centers: Tensor, image_factors: Tensor, target_factors: Tensor
) -> Tensor:
    """Run `torch_ops.embedding_gradients_` in one kernel."""
    batch, width = weighted_.shape
    launch(
        _embedding_gradients,
        (triton.cdiv(batch, ROWS),),
        weighted_,
        centers,
        image_factors,
        target_factors,
        batch,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ROWS=ROWS,
    )
    return weighted_


def add_target_gradients_(
    d_unit_: Tensor, targets: ChunkTargets, embeddings: Tensor, weights: Tensor
) -> None:
    """Run `torch_ops.add_target_gradients_` in one kernel; images of a class are added in their order."""
    count, width = len(targets.images), embeddings.shape[1]
    if not count:
        return
    launch(
        _add_target_gradients,
        (count,),
        d_unit_,
        targets.slots,
        targets.images,
        embeddings,
        weights,
        count,
        targets.start,
        targets.size,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        COMPUTED=TYPES[d_unit_.dtype],
    )


@triton.jit(do_not_specialize=["batch"])
def _softmax_totals(
    total, logits, slots, shift, out, batch, scale, max_logit, IMAGES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    live = image < batch
    here = tl.load(slots + image, mask=live, other=-1) >= 0
    logit = tl.load(logits + image, mask=here, other=0.0).to(tl.float64) * scale
    by = logit * 0
    if shift is not None:
        by = tl.load(shift + image, mask=live, other=0.0).to(tl.float64)
    negatives = tl.load(total + image, mask=live, other=0.0) * tl.exp(by - max_logit)
    own = tl.where(here, tl.exp(logit - max_logit), 0.0)
    tl.store(out + image, negatives + own, mask=live)
    tl.store(out + batch + image, logit, mask=live)


@triton.jit(do_not_specialize=["batch"])
def _softmax_gradient(
    totals, logits, slopes, slots, valid, num_valid, shift, factors, targets, losses, batch,
    scale, max_logit, KINDS: tl.constexpr, MAX_EXPONENT: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    live = image < batch
    here = tl.load(slots + image, mask=live, other=-1) >= 0
    counted = tl.load(valid + image, mask=live, other=0) != 0
    lse = tl.log(tl.load(totals + image, mask=live, other=1.0)) + max_logit
    own = tl.load(totals + batch + image, mask=live, other=0.0)
    by = lse * 0
    if shift is not None:
        by = tl.load(shift + image, mask=live, other=0.0).to(tl.float64)
    part = tl.where(counted, 1.0, 0.0).to(tl.float64) / tl.load(num_valid)
    factor = part * scale * tl.exp(tl.minimum(by - lse, MAX_EXPONENT))
    tl.store(factors + image, factor.to(factors.dtype.element_ty), mask=live)
    tl.store(losses + image, tl.where(counted, (lse - own) * part, 0.0), mask=live)
    logit = tl.load(logits + image, mask=here, other=0.0).to(tl.float64) * scale
    pull = tl.where(here, part * scale * (tl.exp(logit - lse) - 1.0), 0.0)  # double: 1 is not lost in it
    for kind in tl.static_range(KINDS):
        place = kind * batch + image
        slope = tl.load(slopes + place, mask=here, other=0.0).to(tl.float64)
        tl.store(targets + place, (pull * slope).to(targets.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["batch"])
def _embedding_gradients(
    weighted, centers, factors, targets, batch,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    image, column, live, within = tile(batch, WIDTH, PADDED, ROWS)
    place = image[:, None] * WIDTH + column[None, :]
    gradient = (
        tl.load(weighted + place, mask=within, other=0.0)
        * tl.load(factors + image, mask=live, other=0.0)[:, None]
    )
    target = tl.load(targets + image, mask=live, other=0.0)
    has = target != 0.0  # centers of other ranks are not read
    own = tl.load(centers + place, mask=within & has[:, None], other=0.0)
    gradient += own * target[:, None]
    tl.store(weighted + place, gradient, mask=within)


@triton.jit(do_not_specialize=["count", "start", "size"])
def _add_target_gradients(
    gradients, slots, by_class, embeddings, weights, count, start, size,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    slot = tl.load(slots + tl.load(by_class + first))
    before = tl.load(slots + tl.load(by_class + first - 1, mask=first > 0, other=0))
    starts = (first == 0) | (slot != before)  # the first image of its class adds those of all
    if starts & (slot >= start) & (slot < start + size):
        column = tl.arange(0, PADDED)
        within = column < WIDTH
        out = gradients + (slot - start) * WIDTH + column
        total = tl.load(out, mask=within, other=0.0)
        place = first
        same = slot
        while same == slot:
            image = tl.load(by_class + place)
            weight = tl.load(weights + image)
            total += tl.load(embeddings + image * WIDTH + column, mask=within, other=0.0) * weight
            place += 1
            after = tl.load(by_class + place, mask=place < count, other=0)
            same = tl.load(slots + after, mask=place < count, other=-1)
        tl.store(out, total.to(COMPUTED), mask=within)
