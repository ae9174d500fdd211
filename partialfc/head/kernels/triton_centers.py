"""Triton kernels of centers: normalization, angles of targets, and the optimizer step, in one pass each.

A program reads and writes a few rows alone, and its sums have a fixed order. A step therefore gives the same bits every
time on one type of GPU. The kernels require one normalized center per class.

Shapes:
    c: rows of a chunk
    B: images in the global batch
    D: components of a center
"""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.kernels.torch_centers import (
    CENTERS,
    NormalizedCenters,
    RowFormat,
    StoredRows,
    TargetCenters,
    angles_of,
)
from partialfc.head.kernels.triton_rows import ROWS, TYPES, current, launch, stored_at, tile
from partialfc.head.optimizers import OptimizerConstants
from partialfc.head.storage.rounding import LOW, MIX

_EPS = 1e-12  # as torch.nn.functional.normalize has it


def normalize_centers(
    rows: StoredRows, row_format: RowFormat, *, inverse_norms_: Tensor
) -> NormalizedCenters:
    """Run `torch_centers.normalize_centers` in one pass."""
    size, kinds = rows.size, (row_format.precision.logits_dtype, row_format.precision.grads_dtype)
    for_logits, for_sums = (row_format.buffer(f"unit {kind}", size, kind) for kind in kinds)
    launch(
        _normalize_centers,
        (triton.cdiv(size, ROWS),),
        rows.tensors[CENTERS],
        _caught_up_by(rows, row_format),
        rows.index,
        rows.factors,
        for_logits,
        None if kinds[0] == kinds[1] else for_sums,
        inverse_norms_,
        size,
        **_widths(row_format.width),
        COMPUTED=TYPES[row_format.dtype],
        TINY=torch.finfo(row_format.dtype).tiny,
    )
    return NormalizedCenters(for_logits, for_sums)


def target_centers(
    rows: StoredRows, row_format: RowFormat, slots: Tensor, embeddings: Tensor
) -> TargetCenters:
    """Run `torch_centers.target_centers` in one pass; a negative slot gives the center 0 and a right angle."""
    batch = len(slots)
    centers = torch.empty_like(embeddings)
    distances = embeddings.new_empty(2, batch, dtype=torch.float64)  # |x - w| and |x + w|, for angles_of
    launch(
        _target_distances,
        (triton.cdiv(batch, ROWS),),
        rows.tensors[CENTERS],
        _caught_up_by(rows, row_format),
        rows.index,
        rows.factors,
        slots,
        embeddings,
        centers,
        distances,
        batch,
        **_widths(row_format.width),
        COMPUTED=TYPES[row_format.dtype],
        EPS=_EPS,
    )
    return TargetCenters(centers, angles_of(distances[0], distances[1], embeddings.dtype), slots)


def step_centers(
    rows: StoredRows,
    row_format: RowFormat,
    d_unit_: Tensor,
    inverse_norms: Tensor,
    *,
    lr: Tensor,
    finite: Tensor,
    count: Tensor | None,
) -> None:
    """Run `torch_centers.step_centers` in one pass; `d_unit_` does not change."""
    names = CENTERS, *row_format.optimizer.moments
    bias, root = (None, None) if count is None else row_format.optimizer.corrections(count, d_unit_.dtype)
    launch(
        _step_centers,
        (triton.cdiv(rows.size, ROWS),),
        *_filled([rows.tensors[name] for name in names], 3),
        rows.index,
        rows.factors,
        d_unit_,
        inverse_norms,
        lr,
        finite.view(torch.uint8),
        bias,
        root,
        rows.noise,
        *_filled([row_format.rounding_columns.get(name) for name in names], 3),
        rows.size,
        **_widths(row_format.width),
        COMPUTED=TYPES[row_format.dtype],
        FIRST=MIX[0],
        SECOND=MIX[1],
        LOW=LOW,
        **_named(row_format.optimizer.constants),
    )


def _caught_up_by(rows: StoredRows, row_format: RowFormat) -> Tensor | None:
    """Return the momentum if missed steps add it to the centers."""
    if rows.factors is None or not row_format.optimizer.moments:
        return None
    return rows.tensors[row_format.optimizer.moments[0]]


def _widths(width: int) -> dict[str, int]:
    return {"WIDTH": width, "PADDED": triton.next_power_of_2(width), "ROWS": ROWS}


def _named(constants: OptimizerConstants) -> dict[str, float]:
    return {
        "MOMENTUM": constants.momentum,
        "NESTEROV": constants.nesterov,
        "DECAY": constants.decay,
        "BETA1": constants.betas[0],
        "BETA2": constants.betas[1],
        "EPS": constants.eps,
    }


def _filled(tensors: list[Tensor | None], size: int) -> list[Tensor | None]:
    return [*tensors, *[None] * (size - len(tensors))]


@triton.jit(do_not_specialize=["size"])
def _target_distances(
    weights, momenta, index, factors, slots, embeddings, centers, distances, size,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COMPUTED: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    image, column, live, within = tile(size, WIDTH, PADDED, ROWS)
    slot = tl.load(slots + image, mask=live, other=-1)
    here = slot >= 0
    read = within & here[:, None]
    stored = stored_at(index, slot, here)[:, None] * WIDTH + column[None, :]
    center = current(weights, momenta, factors, stored, slot, here, read, COMPUTED)
    center = center / tl.maximum(tl.sqrt(tl.sum(center * center, 1)), EPS)[:, None]
    place = image[:, None] * WIDTH + column[None, :]
    tl.store(centers + place, center, mask=within)
    embedding = tl.load(embeddings + place, mask=within, other=0.0)
    apart, together = embedding - center, embedding + center
    tl.store(distances + image, tl.sqrt(tl.sum(apart * apart, 1)), mask=live)
    tl.store(distances + size + image, tl.sqrt(tl.sum(together * together, 1)), mask=live)


@triton.jit(do_not_specialize=["size"])
def _normalize_centers(
    weights, momenta, index, factors, for_logits, for_sums, inverses, size,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COMPUTED: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    slot, column, live, within = tile(size, WIDTH, PADDED, ROWS)
    place = stored_at(index, slot, live)[:, None] * WIDTH + column[None, :]
    weight = current(weights, momenta, factors, place, slot, live, within, COMPUTED)
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(weight * weight, 1)), TINY)
    unit = weight * inverse[:, None]
    out = slot[:, None] * WIDTH + column[None, :]
    tl.store(inverses + slot, inverse, mask=live)
    tl.store(for_logits + out, unit.to(for_logits.dtype.element_ty), mask=within)
    if for_sums is not None:
        tl.store(for_sums + out, unit.to(for_sums.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["size"])
def _step_centers(
    weights, first, second, index, factors, gradients, inverses, rate, finite, biases, roots,
    noise, columns, columns_first, columns_second, size,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COMPUTED: tl.constexpr,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, DECAY: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    slot, column, live, within = tile(size, WIDTH, PADDED, ROWS)
    place = stored_at(index, slot, live)[:, None] * WIDTH + column[None, :]
    lr = tl.load(rate)
    taken = tl.load(finite) != 0
    word = slot.to(tl.int32)
    if noise is not None:
        word = tl.load(noise + slot, mask=live, other=0)

    weight = tl.load(weights + place, mask=within, other=0.0).to(COMPUTED)
    moment = weight
    if first is not None:
        moment = tl.load(first + place, mask=within, other=0.0).to(COMPUTED)
    if factors is not None:
        weight, moment = _caught_up(weight, moment, factors, slot, live, first is not None)
    gradient = tl.load(gradients + slot[:, None] * WIDTH + column[None, :], mask=within, other=0.0)
    gradient = tl.where(taken, gradient, 0.0)  # else it may be nan
    gradient = _projected(gradient, weight, tl.load(inverses + slot, mask=live, other=0.0))

    if second is not None:
        square = tl.load(second + place, mask=within, other=0.0).to(COMPUTED)
        bias = tl.load(biases + slot, mask=live, other=1.0)[:, None]
        root = tl.load(roots + slot, mask=live, other=1.0)[:, None]
        stepped, new_moment, new_square = _adamw(
            weight, moment, square, gradient, lr, bias, root, DECAY, BETA1, BETA2, EPS
        )
        _put(second, place, within, tl.where(taken, new_square, square), word, columns_second, column, WIDTH,
             FIRST, SECOND, LOW)  # fmt: skip
    else:
        stepped, new_moment = _sgd(weight, moment, gradient, lr, DECAY, MOMENTUM, first is not None, NESTEROV)
    if first is not None:
        _put(first, place, within, tl.where(taken, new_moment, moment), word, columns_first, column, WIDTH,
             FIRST, SECOND, LOW)  # fmt: skip
    _put(weights, place, within, tl.where(taken, stepped, weight), word, columns, column, WIDTH,
         FIRST, SECOND, LOW)  # fmt: skip


@triton.jit
def _caught_up(weight, moment, factors, slot, live, HAS_MOMENT: tl.constexpr):
    """After the steps that the rows have missed."""
    later = weight * tl.load(factors + slot * 4, mask=live, other=1.0)[:, None]
    later_moment = moment
    if HAS_MOMENT:
        later += moment * tl.load(factors + slot * 4 + 1, mask=live, other=0.0)[:, None]
        later_moment = moment * tl.load(factors + slot * 4 + 3, mask=live, other=1.0)[:, None]
        later_moment += weight * tl.load(factors + slot * 4 + 2, mask=live, other=0.0)[:, None]
    return later, later_moment


@triton.jit
def _projected(gradient, weight, inverse):
    """Return the gradient through the normalization, which is orthogonal to the rows."""
    radial = tl.sum(gradient * weight, 1) * inverse * inverse
    return (gradient - weight * radial[:, None]) * inverse[:, None]


@triton.jit
def _sgd(
    weight, moment, gradient, lr,
    DECAY: tl.constexpr, MOMENTUM: tl.constexpr, HAS_MOMENT: tl.constexpr, NESTEROV: tl.constexpr,
):  # fmt: skip
    change = gradient + weight * DECAY
    if HAS_MOMENT:
        moment = moment * MOMENTUM + change
        if NESTEROV:
            change += moment * MOMENTUM
        else:
            change = moment
    return weight - change * lr, moment


@triton.jit
def _adamw(
    weight, moment, square, gradient, lr, bias, root,
    DECAY: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    moment = moment * BETA1 + gradient * (1 - BETA1)
    square = square * BETA2 + gradient * gradient * (1 - BETA2)
    denominator = tl.sqrt(square) / root + EPS
    return weight * (1 - lr * DECAY) - moment * (lr / bias) / denominator, moment, square


@triton.jit
def _put(
    tensor, place, within, values, word, columns, column,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Store the values, rounded like `rounding.round_` if the tensor has column noise."""
    if columns is not None:
        words = tl.load(columns + column, mask=column < WIDTH, other=0)
        mixed = word[:, None] + words[None, :]
        mixed = (mixed ^ ((mixed >> 16) & LOW)) * FIRST
        mixed = (mixed ^ ((mixed >> 16) & LOW)) * SECOND
        bits = values.to(tl.float32).to(tl.int32, bitcast=True) + ((mixed >> 16) & LOW)
        values = (bits & ~LOW).to(tl.float32, bitcast=True)
    tl.store(tensor + place, values.to(tensor.dtype.element_ty), mask=within)
