"""What is computed of one chunk of classes: tensors in, tensors out, no state. A kernel may replace each of these.

Legend: c rows of the chunk, B images in the global batch, N' of them of the chunk's classes, D width, s the scale.
`out` and what ends in an underscore is memory that is written; nothing else is.
"""

import torch
from torch import Tensor

from partialfc.head.matmul import Matmul

Places = tuple[Tensor, Tensor]  # [N'] rows and [N'] images: where a chunk's targets stand in [c, B]


def unit_rows(weight: Tensor, *, out: Tensor, inverse_: Tensor) -> Tensor:
    """The rows [c, D] at length 1; `inverse_` [c, 1] is filled with 1 / their lengths."""
    torch.linalg.vector_norm(weight, dim=1, keepdim=True, out=inverse_)
    inverse_.clamp_min_(torch.finfo(weight.dtype).tiny).reciprocal_()
    return torch.mul(weight, inverse_, out=out)


def logits(
    unit: Tensor,
    scaled_embeddings: Tensor,
    *,
    largest: float | None,
    correction: Tensor | None,
    matmul: Matmul,
    out: Tensor,
) -> Tensor:
    """s cos t [c, B], those of the targets too; -inf where above `largest`; plus `correction` [c].

    unit: rows [c, D] at length 1; scaled_embeddings: [B, D] at length s.
    """
    matmul.into(out, unit, scaled_embeddings.T)
    if largest is not None:
        out.masked_fill_(out > largest, -torch.inf)
    return out if correction is None else out.add_(correction[:, None])


def without_targets(values_: Tensor, places: Places, instead: Tensor) -> Tensor:
    """`values_` [c, B] with the scalar `instead` at the targets.

    It is a tensor of the device: of a Python number, a write by index makes one of the host, and waits for its copy.
    """
    if len(places[0]):
        values_[places] = instead
    return values_


def exponentials(logits_: Tensor, shift: Tensor | None, places: Places, zero: Tensor) -> Tensor:
    """exp(z - shift) [c, B], 0 at the targets, in the logits' memory; shift [B] or None."""
    if shift is not None:
        logits_.sub_(shift)
    return without_targets(logits_.exp_(), places, zero)


def accumulate(total_: Tensor, weighted_: Tensor, kept: Tensor, unit: Tensor, matmul: Matmul) -> None:
    """Add a chunk's exponentials `kept` [c, B] to their sum `total_`, [B] double, and kept w to `weighted_`, [B, D]."""
    total_ += kept.sum(dim=0)
    matmul.added_to(weighted_, kept.T, unit)


def row_gradients(
    kept: Tensor,
    pulls: Tensor,
    target_slots: Tensor,
    target_pulls: Tensor,
    *,
    finite_bits: Tensor,
    matmul: Matmul,
    out: Tensor,
) -> Tensor:
    """The loss's gradient [c, D] by the rows at length 1; 0 in a step that is skipped.

    kept: exponentials [c, B], 0 at the targets; pulls [B, D]: each embedding times what turns its exponentials into the
    loss's derivatives by the cosines; target_pulls [N', D]: the same of the targets, for the rows `target_slots` [N'].
    finite_bits: from bits_of.
    """
    matmul.into(out, kept, pulls)
    if len(target_slots):
        # accumulate: several images may be of one class; in a fixed order on a GPU, too, unlike index_add_
        out.index_put_((target_slots,), target_pulls, accumulate=True)
    # What a skipped step leaves may be nan, which times 0 stays nan; and where() takes seven times as long on a CPU.
    out.view(finite_bits.dtype).bitwise_and_(finite_bits)
    return out


def bits_of(finite: Tensor, dtype: torch.dtype) -> Tensor:
    """An integer scalar as wide as `dtype`, all ones where the bool scalar `finite` is true, else 0."""
    return -finite.to(torch.int64 if dtype == torch.float64 else torch.int32)
