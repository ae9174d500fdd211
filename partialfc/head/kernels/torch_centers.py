"""Reference operations on rows of centers, in plain torch: read, normalize, update, write.

Tensors in, tensors out, no state. `triton_centers.py` implements the same functions in fewer passes over memory. Only
arguments that end in an underscore are written.

Shapes:
    B: images in the global batch
    c: classes of a chunk
    K: centers of each class side by side in a row
    n: rows of this rank
    D: components of a center
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.buffers import BufferPool
from partialfc.head.optimizers import RowOptimizer, RowUpdate
from partialfc.head.precision import MatmulPrecision
from partialfc.head.storage import rounding

CENTERS = "centers"  # name of the tensor of centers in a state


@dataclass(frozen=True)
class RowFormat:
    """Format of rows, equal for all steps of a head."""

    optimizer: RowOptimizer
    subcenters: int  # K
    width: int  # D
    on_sphere: bool  # normalize centers
    dtype: torch.dtype  # of the computation
    rounding_columns: dict[str, Tensor]  # [K D] int32, noise of the components of each bfloat16 tensor
    precision: MatmulPrecision
    scratch: BufferPool

    def centers_of(self, rows: Tensor) -> Tensor:
        """Return rows `[c, K D]` as centers `[c K, D]`."""
        return rows.view(-1, self.width)

    def buffer(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Return temporary memory for rows, `[c, K D]`, which overwrites the previous tensor of this name."""
        return self.scratch.get(name, (rows, self.subcenters * self.width), dtype)


@dataclass(frozen=True)
class StoredRows:
    """Stored rows of a chunk or of a step."""

    tensors: dict[str, Tensor]  # centers and moments by name, [n, K D] each; [c, K D] without an index
    index: Tensor | None  # [c] int64, rows of the tensors
    factors: Tensor | None  # [c, 2, 2], effect of missed steps on (weight, momentum)
    noise: Tensor | None  # [c] int32, noise words for stochastic rounding

    @property
    def size(self) -> int:
        """Number of rows, c."""
        return len(self.tensors[CENTERS] if self.index is None else self.index)


class NormalizedCenters(NamedTuple):
    """Normalized centers of a chunk, `[c K, D]`, as factors of matrix products; one tensor if the dtypes are equal."""

    for_logits: Tensor
    for_sums: Tensor  # multiplied by logit gradients


class TargetCenters(NamedTuple):
    """Nearest center of each image's class; any finite values if the class is on another rank."""

    centers: Tensor  # [B, D], normalized if `on_sphere`
    angle: Tensor  # [B], in radians; the logit itself unless `on_sphere`
    slots: Tensor  # [B] int64, index among the S K centers; negative if on another rank


def angles(left: Tensor, right: Tensor) -> Tensor:
    """Return the angles between unit vectors `[B, D]`, in radians, `[B]`.

    2 atan2(|x - w|, |x + w|) is exact near 0 and pi, whereas a float32 cosine is 1 for angles below 3e-4.
    """
    apart = torch.linalg.vector_norm(left - right, dim=1)
    together = torch.linalg.vector_norm(left + right, dim=1)
    return angles_of(apart.double(), together, apart.dtype)


def angles_of(apart: Tensor, together: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 2 atan2(apart, together) `[B]` in `dtype`, computed in float64, which one of the arguments must have.

    A CPU computes blocks of float32 values with SLEEF and the remaining ones with libm. The two differ in the last
    bit, so that an angle would depend on its position in the batch. Rounding from float64 removes the difference.
    """
    return torch.atan2(apart, together, out=apart.new_empty(apart.shape, dtype=dtype)).mul_(2)


def read_centers(rows: StoredRows, row_format: RowFormat) -> Tensor:
    """Return centers for reading, `[c K, D]`, valid until the next call."""
    weight = _load(CENTERS, rows, row_format)
    if rows.factors is not None:
        weight, _ = _caught_up(weight, _load_moments(rows, row_format), rows.factors, row_format)
    return row_format.centers_of(weight)


def normalize_centers(
    rows: StoredRows, row_format: RowFormat, *, inverse_norms_: Tensor
) -> NormalizedCenters:
    """Return the normalized centers of a chunk, valid until the next call.

    `inverse_norms_` `[c K, 1]` receives 1 / norms.
    """
    centers = read_centers(rows, row_format)
    if row_format.on_sphere:
        # Without gather, conversion and missed steps, `centers` is the stored tensor itself.
        stored = (
            rows.index is None and rows.factors is None and rows.tensors[CENTERS].dtype == row_format.dtype
        )
        out = (
            row_format.centers_of(row_format.buffer("unit", rows.size, row_format.dtype))
            if stored
            else centers
        )
        torch.linalg.vector_norm(centers, dim=1, keepdim=True, out=inverse_norms_)
        inverse_norms_.clamp_min_(torch.finfo(row_format.dtype).tiny).reciprocal_()
        centers = torch.mul(centers, inverse_norms_, out=out)
    else:
        inverse_norms_.fill_(1)
    logits, sums = row_format.precision.logits_dtype, row_format.precision.grads_dtype
    return NormalizedCenters(_as_factor(centers, logits, row_format), _as_factor(centers, sums, row_format))


def target_centers(
    rows: StoredRows, row_format: RowFormat, slots: Tensor, embeddings: Tensor
) -> TargetCenters:
    """Return the centers of the classes at `slots` `[B]` nearest to the embeddings `[B, D]`, and their angles."""
    centers = row_format.centers_of(gather_rows(rows, row_format, slots))
    if not row_format.on_sphere:
        return TargetCenters(centers, torch.linalg.vecdot(centers, embeddings), slots)
    centers = torch.nn.functional.normalize(centers)
    if (each := row_format.subcenters) > 1:
        nearest = torch.linalg.vecdot(centers.unflatten(0, (len(slots), each)), embeddings[:, None]).argmax(
            dim=1
        )
        centers = centers.index_select(0, torch.arange(len(slots), device=slots.device) * each + nearest)
        slots = torch.where(slots < 0, slots, slots * each + nearest)
    return TargetCenters(centers, angles(embeddings, centers), slots)


def gather_rows(rows: StoredRows, row_format: RowFormat, slots: Tensor) -> Tensor:
    """Return a copy of the rows at `slots` `[B]`, `[B, K D]`; any row for a negative slot."""
    if not rows.size:  # a rank without classes
        return slots.new_zeros(len(slots), row_format.subcenters * row_format.width, dtype=row_format.dtype)
    slots = slots.clamp_min(0)
    index = slots if rows.index is None else rows.index.index_select(0, slots)
    weight = rows.tensors[CENTERS].index_select(0, index).to(row_format.dtype)
    if rows.factors is None:
        return weight
    factors = rows.factors.index_select(0, slots)
    weight = weight * factors[:, 0, 0, None]
    for momentum in (rows.tensors[name] for name in row_format.optimizer.moments):
        weight.addcmul_(momentum.index_select(0, index).to(row_format.dtype), factors[:, 0, 1, None])
    return weight


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
    """Take one optimizer step of a chunk, or none if `finite` is False.

    Args:
        rows: Rows of the chunk, updated.
        row_format: Format of the rows.
        d_unit_: Gradient by the normalized centers, `[c K, D]`, overwritten; any values in a skipped step.
        inverse_norms: 1 / norms of the centers, `[c K, 1]`.
        lr: Learning rate, scalar; 0 in a skipped step.
        finite: Bool scalar, False in a skipped step.
        count: Number of steps of each row including this one, `[c, 1]`; None if the optimizer does not count.
    """
    _zero_unless(d_unit_, finite)
    weight, moments = _load(CENTERS, rows, row_format), _load_moments(rows, row_format)
    if rows.factors is not None:
        weight, moments = _caught_up(weight, moments, rows.factors, row_format)
    gradient = d_unit_
    if row_format.on_sphere:  # the gradient through the normalization is orthogonal to the center
        centers = row_format.centers_of(weight)
        radial = torch.linalg.vecdot(d_unit_, centers).unsqueeze(1).mul_(inverse_norms * inverse_norms).neg_()
        gradient = d_unit_.addcmul_(centers, radial).mul_(inverse_norms)
    row_format.optimizer.step(RowUpdate(weight, gradient.view_as(weight), moments, lr, finite, count))
    for name, values in zip((CENTERS, *row_format.optimizer.moments), (weight, *moments), strict=True):
        _store(name, values, rows, row_format)


def catch_up(rows: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """Return rows of centers and of their momentum, if stored, after their missed steps, `[S, K D]` each.

    Args:
        rows: Rows by name.
        factors: Factors of `CatchUp`, `[S, 2, 2]`.
    """
    names = [CENTERS, *(name for name in rows if name != CENTERS)]
    factors = factors.to(rows[CENTERS].device)
    stacked = torch.stack([rows[name].to(factors.dtype) for name in names], dim=1)  # [S, k, K D]
    later = factors[:, : len(names), : len(names)] @ stacked
    return {name: later[:, place] for place, name in enumerate(names)}


def write_rows(rows: StoredRows, row_format: RowFormat, slots: Tensor, values: Tensor) -> None:
    """Replace the rows at `slots` `[N]`; equal slots have equal rows."""
    noise = None if rows.noise is None else rows.noise.index_select(0, slots)
    index = slots if rows.index is None else rows.index.index_select(0, slots)
    rows.tensors[CENTERS].index_copy_(0, index, _rounded(CENTERS, values, rows, row_format, noise))


def _load(name: str, rows: StoredRows, row_format: RowFormat) -> Tensor:
    """Return a chunk of a tensor in the dtype of the computation, without a copy if possible."""
    part = rows.tensors[name]
    if rows.index is not None:
        stored, part = part, row_format.buffer(f"stored {name}", len(rows.index), part.dtype)
        torch.index_select(stored, 0, rows.index, out=part)
    if part.dtype == row_format.dtype:
        return part
    return row_format.buffer(name, len(part), row_format.dtype).copy_(part)


def _load_moments(rows: StoredRows, row_format: RowFormat) -> list[Tensor]:
    return [_load(name, rows, row_format) for name in row_format.optimizer.moments]


def _caught_up(
    weight: Tensor, moments: list[Tensor], factors: Tensor, row_format: RowFormat
) -> tuple[Tensor, list[Tensor]]:
    """Return copies of weight and momentum, if stored, after the missed steps."""
    part = factors.unsqueeze(-1)  # [c, 2, 2, 1]
    later = torch.mul(
        weight, part[:, 0, 0], out=row_format.buffer("later weight", len(weight), row_format.dtype)
    )
    if not moments:
        return later, []
    (momentum,) = moments
    later.addcmul_(momentum, part[:, 0, 1])
    later_momentum = row_format.buffer("later momentum", len(weight), row_format.dtype)
    torch.mul(momentum, part[:, 1, 1], out=later_momentum)
    return later, [later_momentum.addcmul_(weight, part[:, 1, 0])]


def _store(name: str, values: Tensor, rows: StoredRows, row_format: RowFormat) -> None:
    stored = rows.tensors[name]
    values = _rounded(name, values, rows, row_format, rows.noise)
    if rows.index is not None:
        stored.index_copy_(0, rows.index, values)
    elif stored.dtype != row_format.dtype or rows.factors is not None:  # otherwise the update was in place
        stored.copy_(values)


def _rounded(
    name: str, values: Tensor, rows: StoredRows, row_format: RowFormat, noise: Tensor | None
) -> Tensor:
    """Return rows in the storage dtype; bfloat16 needs their `noise`."""
    stored = rows.tensors[name]
    if stored.dtype != torch.bfloat16:
        return values
    assert noise is not None
    values = values.to(torch.float32)
    rounding.round_(values, noise, row_format.rounding_columns[name], row_format.scratch)
    # Exact after rounding.
    return row_format.buffer(f"stored {name}", len(values), stored.dtype).copy_(values)


def _as_factor(centers: Tensor, kind: torch.dtype, row_format: RowFormat) -> Tensor:
    if centers.dtype == kind:
        return centers
    rows = len(centers) // row_format.subcenters
    return row_format.centers_of(row_format.buffer(f"unit {kind}", rows, kind)).copy_(centers)


def _zero_unless(values_: Tensor, finite: Tensor) -> Tensor:
    """Set `values_` to 0 if the bool scalar `finite` is False."""
    bits = -finite.to(torch.int64 if values_.dtype == torch.float64 else torch.int32)
    # NaN * 0 is NaN, and torch.where takes seven times as long on a CPU.
    values_.view(bits.dtype).bitwise_and_(bits)
    return values_
