"""What is computed of one chunk of classes: tensors in, tensors out, no state. Kernels stand behind some of these, see
`kernels/`; these are the reference, and decide what is right.

Legend: c rows of the chunk, B images in the global batch, N' of them of the chunk's classes, D width, s the scale.
`out` and what ends in an underscore is memory that is written; nothing else is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.losses import HardNegatives


class Places(NamedTuple):
    """Where a chunk's targets stand in its [c, B]."""

    slots: Tensor  # [N'] of their classes among all active ones
    images: Tensor  # [N']
    slot_of_image: Tensor  # [B] the same for all chunks; -1: of no class of this rank
    start: int  # the slot of the chunk's first row

    def rows_and_images(self) -> tuple[Tensor, Tensor]:
        """Their [N'] rows and [N'] images."""
        return self.slots - self.start, self.images


def unit_rows(weight: Tensor, *, out: Tensor, inverse_: Tensor) -> Tensor:
    """The rows [c, D] at length 1; `inverse_` [c, 1] is filled with 1 / their lengths."""
    torch.linalg.vector_norm(weight, dim=1, keepdim=True, out=inverse_)
    inverse_.clamp_min_(torch.finfo(weight.dtype).tiny).reciprocal_()
    return torch.mul(weight, inverse_, out=out)


def negatives(
    logits_: Tensor, largest: float | None, correction: Tensor | None, hard: HardNegatives | None
) -> Tensor | None:
    """`logits_` [c, B], s cos t, as those of negatives: -inf where above `largest`; raised where `hard` has them so; plus
    `correction` [c]. Returns their derivatives by s cos t, [c, B]; None: 1.
    """
    if largest is not None:
        logits_.masked_fill_(logits_ > largest, -torch.inf)
    slope = None
    if hard is not None:
        raised, cosine = logits_ > hard.above, logits_ / hard.scale
        slope = torch.where(raised, hard.level + 2 * cosine, 1.0)
        torch.where(raised, logits_ * (hard.level + cosine), logits_, out=logits_)
    if correction is not None:
        logits_.add_(correction[:, None])
    return slope


def without_targets(values_: Tensor, places: Places, instead: Tensor) -> Tensor:
    """`values_` [c, B] with the scalar `instead` at the targets.

    It is a tensor of the device: of a Python number, a write by index makes one of the host, and waits for its copy.
    """
    if len(places.slots):
        values_[places.rows_and_images()] = instead
    return values_


def exponentials(
    logits_: Tensor,
    places: Places,
    *,
    shift: Tensor | None,
    largest: float | None,
    correction: Tensor | None,
    hard: HardNegatives | None,
    total_: Tensor | None,
    out: Tensor,
) -> None:
    """`out` [c, B] = exp(z - shift) times the derivative of z by s cos t, 0 at the targets, with z the `negatives` of
    `logits_`; `total_`, [B] double, gets the sums of exp(z - shift) added, before they are rounded to the type of `out`.

    shift: [B], or None: 0; out: may be `logits_`.
    """
    slope = negatives(logits_, largest, correction, hard)
    if shift is not None:
        logits_.sub_(shift)
    without_targets(logits_.exp_(), places, logits_.new_zeros(()))
    if total_ is not None:
        total_ += logits_.sum(dim=0)
    if slope is not None:
        logits_.mul_(slope)
    if out is not logits_:
        out.copy_(logits_)


def angles(embeddings: Tensor, centers: Tensor) -> Tensor:
    """The angle [N], in radians, between unit vectors [N, D] and [N, D].

    2 atan2(|x - w|, |x + w|) is right near 0 and pi, where a single-precision cosine is +-1 within 3e-4.
    """
    apart = torch.linalg.vector_norm(embeddings - centers, dim=1)
    together = torch.linalg.vector_norm(embeddings + centers, dim=1)
    return angles_of(apart.double(), together, apart.dtype)


def angles_of(apart: Tensor, together: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 2 atan2(apart, together) `[N]` in `dtype`, computed in float64, which one of the arguments must have.

    A CPU computes blocks of float32 values with SLEEF and the remaining ones with libm. The two differ in the last
    bit, so that an angle would depend on its position in the batch. Rounding from float64 removes the difference.
    """
    return torch.atan2(apart, together, out=apart.new_empty(apart.shape, dtype=dtype)).mul_(2)


def where_finite(values_: Tensor, finite: Tensor) -> Tensor:
    """`values_` where the bool scalar `finite` is true, else 0."""
    bits = -finite.to(torch.int64 if values_.dtype == torch.float64 else torch.int32)
    # What a skipped step leaves may be nan, which times 0 stays nan; and where() takes seven times as long on a CPU.
    values_.view(bits.dtype).bitwise_and_(bits)
    return values_
