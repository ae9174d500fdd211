"""Triton kernels of the rows: what `ActiveRows` does to a chunk in a dozen passes, in one.

Legend: c rows of a chunk, D components. A program works on a few rows; each is read and written by one program, and its
sums are taken in a fixed order, so that a step gives the same bits whenever it is taken on one kind of GPU.
"""

# mypy: disable-error-code="no-untyped-def, misc"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.kernels.launching import TYPES, launch
from partialfc.head.kernels.tiles import ROWS, current, stored_at, tile
from partialfc.head.rows.optimizers import Constants
from partialfc.head.rows.rounding import LOW, MIX


@dataclass(frozen=True)
class Rows:
    """A chunk of rows where they are stored; float32 or bfloat16, one after the other."""

    weights: Tensor  # [n, D], or [c, D] where there is no index
    moments: tuple[Tensor, ...]  # of the same shape
    index: Tensor | None  # [c] int64 which rows
    factors: Tensor | None  # [c, 2, 2] of weight and momentum, before anything else


@dataclass(frozen=True)
class Rounding:
    """How rows are rounded at random as they are written."""

    noise: Tensor  # [c] int32
    # [D] int32, of weights and moments; None: of those that are not rounded
    columns: tuple[Tensor | None, ...]


def unit_rows(
    rows: Rows, *, for_logits: Tensor, for_sums: Tensor | None, inverse_: Tensor, dtype: torch.dtype
) -> None:
    """`for_logits`, and `for_sums` where it is another, [c, D] = the weights at length 1, each rounded to its type;
    `inverse_` [c, 1] = 1 / their lengths. dtype: that is computed in.
    """
    size, width = for_logits.shape
    launch(
        _unit_rows,
        (triton.cdiv(size, ROWS),),
        rows.weights,
        rows.moments[0] if rows.moments and rows.factors is not None else None,
        rows.index,
        rows.factors,
        for_logits,
        for_sums,
        inverse_,
        size,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ROWS=ROWS,
        COMPUTED=TYPES[dtype],
        TINY=torch.finfo(dtype).tiny,
    )


def step_rows(
    rows: Rows,
    gradient: Tensor,
    inverse: Tensor,
    *,
    lr: Tensor,
    finite: Tensor,
    corrections: tuple[Tensor, Tensor] | None,
    constants: Constants,
    rounding: Rounding | None,
) -> None:
    """One optimizer step of the rows, in place; where the bool scalar `finite` is false, only their factors are taken in.

    gradient [c, D]: by the weights at length 1, in the type that is computed in; inverse [c, 1]: 1 / their lengths;
    lr: a scalar; corrections: [c, 1] each, of Adam's moments.
    """
    size, width = gradient.shape
    bias, root = corrections or (None, None)
    columns = rounding.columns if rounding is not None else ()
    launch(
        _step_rows,
        (triton.cdiv(size, ROWS),),
        rows.weights,
        *_filled(rows.moments, 2),
        rows.index,
        rows.factors,
        gradient,
        inverse,
        lr,
        finite.view(torch.uint8),
        bias,
        root,
        None if rounding is None else rounding.noise,
        *_filled(columns, 3),
        size,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ROWS=ROWS,
        COMPUTED=TYPES[gradient.dtype],
        FIRST=MIX[0],
        SECOND=MIX[1],
        LOW=LOW,
        **_named(constants),
    )


def _named(constants: Constants) -> dict[str, float]:
    return {
        "MOMENTUM": constants.momentum,
        "NESTEROV": constants.nesterov,
        "DECAY": constants.decay,
        "BETA1": constants.betas[0],
        "BETA2": constants.betas[1],
        "EPS": constants.eps,
    }


def _filled(tensors: tuple[Tensor | None, ...], size: int) -> list[Tensor | None]:
    return [*tensors, *[None] * (size - len(tensors))]


@triton.jit(do_not_specialize=["size"])
def _unit_rows(
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
def _step_rows(
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
    """The gradient by the rows, from that by the rows at length 1, which lets through what is at right angles to them."""
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
    """Store the values; where there are words of the columns, rounded as by `rounding.round_`, to the bit."""
    if columns is not None:
        words = tl.load(columns + column, mask=column < WIDTH, other=0)
        mixed = word[:, None] + words[None, :]
        mixed = (mixed ^ ((mixed >> 16) & LOW)) * FIRST
        mixed = (mixed ^ ((mixed >> 16) & LOW)) * SECOND
        bits = values.to(tl.float32).to(tl.int32, bitcast=True) + ((mixed >> 16) & LOW)
        values = (bits & ~LOW).to(tl.float32, bitcast=True)
    tl.store(tensor + place, values.to(tensor.dtype.element_ty), mask=within)
