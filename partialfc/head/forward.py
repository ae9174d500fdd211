"""Forward of a step: one function for each of the three objectives.

All three process the active classes in chunks. They compute the logits `z = s cos t` `[c, B]` of a chunk and, in the
same memory, the logit gradients p `[c, B]`: the derivative of the loss by the logits of negatives, except for one
factor of each image.

    softmax, linear: p = exp(z - shift)        sigmoid: p = sigmoid(z - threshold)

The product `p^T w` is added to the gradient of the embeddings `[B, D]` at once. If p `[S, B]` fits the budget, it is
kept for the gradient of the centers; otherwise `backward` computes it again. p is 0 at targets: their logits come
from exact angles. Norms, the softmax denominator and the scale are multiplied into `[c K, D]` and `[B, D]`, never
into `[c, B]`.

Shapes:
    B: images in the global batch
    S: active classes of this rank
    c: classes in a chunk
    K: centers per class
    D: components of a center
    s: the scale
    k: derivatives of a target logit
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import softplus

from partialfc.head.centers import ActiveCenters
from partialfc.head.kernels.torch_centers import NormalizedCenters, TargetCenters
from partialfc.head.kernels.torch_ops import LogitScale, mask_targets_, select_nearest, transform_negatives_
from partialfc.head.losses import HardNegativeRule, LossInputs, LossState, MarginLoss, SigmoidLoss
from partialfc.head.sampling import ChunkTargets
from partialfc.head.workspace import LogitGrads, StepShape, Workspace
from partialfc.runtime import comm

UNSHIFTED_SCALE = 64.0  # largest logit for which exp(z) and sums of it fit float32 without a shift
_SOFTPLUS_THRESHOLD = 50.0  # softplus(x) equals x above, also in float64


@dataclass(frozen=True)
class ForwardContext:
    """Values of a forward from which `backward` computes the gradient of the centers.

    The derivative of the loss by the cosine of a negative is its logit gradient times the image factor. For a target it
    is the target factor.
    """

    loss: MarginLoss
    shape: StepShape
    embeddings: Tensor  # [B, D], features of all ranks
    scaled: Tensor  # [B, D], the features times s in the dtype of logits
    logit_grads_: Callable[..., None]  # replaces logits by logit gradients
    image_factors: Tensor  # [B]
    target_factors: Tensor  # [B], 0 if the target is on another rank
    target_slots: Tensor  # [B], indices of the targets among the S K centers; negative if on another rank
    kept: LogitGrads | None
    next_state: LossState = field(default_factory=dict)  # entries of the loss state that the batch changes
    state_gradients: LossState = field(default_factory=dict)  # gradients of learned entries of the loss state


class ForwardResult(NamedTuple):
    """Loss and gradients of this rank."""

    loss: Tensor  # scalar, equal on all ranks
    embedding_gradients: Tensor  # [B, D], contribution of the classes of this rank
    norm_gradients: Tensor | None  # [B], contribution of this rank; None if norms have no gradient
    context: ForwardContext


class ForwardInputs(NamedTuple):
    """Inputs of a forward."""

    loss: MarginLoss
    embeddings: Tensor  # [B, D], features of all ranks
    norms: Tensor | None  # [B], norms of the embeddings; None if the loss does not need them
    centers: ActiveCenters
    shape: StepShape
    kept: LogitGrads | None  # memory for the logit gradients; None if they are not kept


def softmax_forward(work: Workspace, inputs: ForwardInputs) -> ForwardResult:
    """Compute the mean of -log softmax(z)[target] over the valid images, for logits with an upper bound.

    Collectives: an all-reduce of float64 `[2, B]`, and one of `[B]` if the loss needs the target cosines.

    Returns:
        Loss and what its backward needs.
    """
    loss, embeddings, _, centers, shape, kept = inputs
    classes, kernels, precision = centers.classes, work.kernels, work.precision
    scaled = (embeddings * loss.scale).to(precision.logits_dtype)
    own = _margins(work, inputs)
    largest = work.max_negative_logit(loss)
    shift = _softmax_shift(work, inputs, scaled, largest, own.hard)

    exp_logits_ = partial(kernels.exp_logits, shift=shift, largest=largest, hard=own.hard)
    sum_exp = torch.zeros(shape.batch, dtype=torch.float64, device=embeddings.device)
    weighted = torch.zeros_like(embeddings)  # [B, D], sum of p^T w
    for chunk in shape.chunks():
        unit, logits, part = chunk_logits(work, centers, shape, chunk, scaled, kept)
        exp_logits_(logits, *classes.in_chunk(chunk), total_=sum_exp, out=part.values)
        precision.addmm_(weighted, work.center_grads(part).T, unit.for_sums)

    by = {"shift": shift, "scale": LogitScale(loss.scale, loss.max_logit)}
    totals = comm.all_reduce_sum_(kernels.softmax_totals(sum_exp, own.logit, classes, **by), work.group)
    found = kernels.softmax_gradient(totals, own.logit, own.slopes, classes, **by)
    gradients = kernels.embedding_gradients_(
        weighted, own.target.centers, found.image_factors, found.target_factors[0]
    )
    value, norm_gradients = _with_norms(inputs, found.loss, found.target_factors)
    context = ForwardContext(
        loss, shape, embeddings, scaled, exp_logits_, found.image_factors, found.target_factors[0],
        own.target.slots, kept, own.state,
    )  # fmt: skip
    return ForwardResult(value, gradients, norm_gradients, context)


def linear_forward(work: Workspace, inputs: ForwardInputs) -> ForwardResult:
    """Compute the mean of -log softmax(w x + b)[target] over the valid images, for logits without a bound.

    Collectives: those of `softmax_forward`, and an all-reduce of the largest logits `[B]`.

    Returns:
        Loss and what its backward needs.
    """
    loss, embeddings, _, centers, shape, kept = inputs
    classes, kernels, precision = centers.classes, work.kernels, work.precision
    has_target, valid = classes.has_target, classes.valid
    scaled = embeddings.to(precision.logits_dtype)
    own = _margins(work, inputs)
    largest = _largest_logits(
        work, inputs, scaled, torch.where(has_target, own.logit, -torch.inf), largest=None, hard=None
    )
    shift = comm.all_reduce_max_(largest, work.group)

    exp_logits_ = partial(kernels.exp_logits, shift=shift, largest=None, hard=None)
    sum_exp = torch.zeros(shape.batch, dtype=torch.float64, device=embeddings.device)
    weighted = torch.zeros_like(embeddings)
    for chunk in shape.chunks():
        unit, logits, part = chunk_logits(work, centers, shape, chunk, scaled, kept)
        exp_logits_(logits, *classes.in_chunk(chunk), total_=sum_exp, out=part.values)
        precision.addmm_(weighted, work.center_grads(part).T, unit.for_sums)

    by, logit = shift.double(), own.logit.double()
    sum_exp += torch.where(has_target, (logit - by).exp(), 0.0)
    sum_exp, gathered = comm.all_reduce_sum_(
        torch.stack([sum_exp, torch.where(has_target, logit, 0.0)]), work.group
    )
    lse = sum_exp.log() + by
    share = valid.double() / classes.num_valid
    value = torch.where(valid, (lse - gathered) * share, 0.0).sum()
    image_factors = torch.where(valid, share * (by - lse).exp(), 0.0).to(embeddings.dtype)
    target_factors = torch.where(has_target, share * torch.expm1(logit - lse), 0.0).to(embeddings.dtype)
    gradients = kernels.embedding_gradients_(weighted, own.target.centers, image_factors, target_factors)
    context = ForwardContext(
        loss, shape, embeddings, scaled, exp_logits_, image_factors, target_factors, own.target.slots, kept,
        own.state,
    )  # fmt: skip
    return ForwardResult(value.to(embeddings.dtype), gradients, None, context)


def sigmoid_forward(work: Workspace, inputs: ForwardInputs) -> ForwardResult:
    """Compute the mean of a `SigmoidLoss` over the valid images.

    Collectives: an all-reduce of two numbers, the loss and its derivative by the threshold.

    Returns:
        Loss and what its backward needs.
    """
    loss, embeddings, _, centers, shape, kept = inputs
    loss = cast(SigmoidLoss, loss)  # selected by its objective
    classes, kernels, precision = centers.classes, work.kernels, work.precision
    scaled = (embeddings * loss.scale).to(precision.logits_dtype)
    own = _margins(work, inputs)

    sigmoid_logits_ = partial(sigmoid_logits, loss=loss, largest=work.max_negative_logit(loss))
    totals = torch.zeros((2, shape.batch), dtype=torch.float64, device=embeddings.device)
    weighted = torch.zeros_like(embeddings)
    for chunk in shape.chunks():
        unit, logits, part = chunk_logits(work, centers, shape, chunk, scaled, kept)
        sigmoid_logits_(logits, *classes.in_chunk(chunk), total_=totals, out=part.values)
        precision.addmm_(weighted, work.center_grads(part).T, unit.for_sums)

    share = 1 / classes.num_valid
    apart = loss.state["threshold"].double() - loss.scale * own.logit.double()
    positive_grads = torch.where(classes.has_target, apart.sigmoid() * (loss.weights.positive * share), 0.0)
    of_targets = torch.where(classes.has_target, softplus(apart, threshold=_SOFTPLUS_THRESHOLD), 0.0).sum()
    found = torch.where(classes.valid, totals, 0.0).sum(dim=1).mul_(loss.weights.negative * share)
    found += torch.stack([of_targets * (loss.weights.positive * share), -positive_grads.sum()])
    value, by_minus_threshold = comm.all_reduce_sum_(found, work.group)
    image_factors = classes.valid.to(embeddings.dtype) * (loss.weights.negative * loss.scale * share)
    target_factors = (-loss.scale * positive_grads * own.slopes[0]).to(embeddings.dtype)
    gradients = kernels.embedding_gradients_(weighted, own.target.centers, image_factors, target_factors)
    context = ForwardContext(
        loss, shape, embeddings, scaled, sigmoid_logits_, image_factors, target_factors, own.target.slots, kept,
        state_gradients={"threshold": -by_minus_threshold},
    )  # fmt: skip
    return ForwardResult(value.to(embeddings.dtype), gradients, None, context)


# Forward of each `Loss.objective`.
FORWARDS: dict[str, Callable[[Workspace, ForwardInputs], ForwardResult]] = {
    "softmax": softmax_forward,
    "linear": linear_forward,
    "sigmoid": sigmoid_forward,
}


def chunk_logits(
    work: Workspace,
    centers: ActiveCenters,
    shape: StepShape,
    chunk: slice,
    scaled: Tensor,
    kept: LogitGrads | None,
) -> tuple[NormalizedCenters, Tensor, LogitGrads]:
    """Compute the logits s cos t `[c, B]` of a chunk, targets included, with the nearest center of each class.

    Returns:
        Normalized centers, logits, and memory for the logit gradients, which may be that of the logits.
    """
    part = work.chunk_grads(shape, chunk, kept)
    unit = centers.normalized(chunk, inverse_norms_=part.inverse_norms)
    logits = work.logits_memory(part)
    if part.nearest_subcenters is None:
        return unit, work.precision.mm(logits, unit.for_logits, scaled.T), part
    each = work.scratch.get("each center's logits", (len(part.inverse_norms), shape.batch), work.dtype)
    work.precision.mm(each, unit.for_logits, scaled.T)
    select_nearest(each, work.subcenters, out=logits, nearest_=part.nearest_subcenters)
    return unit, logits, part


def sigmoid_logits(
    logits_: Tensor,
    targets: ChunkTargets,
    correction: Tensor | None,
    *,
    total_: Tensor | None,
    out: Tensor,
    loss: SigmoidLoss,
    largest: float | None,
) -> None:
    """Compute logit gradients sigmoid(z - threshold) dz / d(s cos t) of a chunk, 0 at targets.

    The arguments are those of `exp_logits`, except for `total_`, float64 `[2, B]`. It accumulates the sums of
    softplus(z - threshold) and of sigmoid(z - threshold).
    """
    left_out = None if largest is None else logits_ > largest
    slope = loss.transform_(logits_)
    logits_.sub_(loss.state["threshold"])
    if left_out is not None:
        logits_.masked_fill_(left_out, -torch.inf)
    mask_targets_(logits_, targets, -torch.inf)
    # Number of classes that a sampled class represents.
    share = None if correction is None else correction.exp()[:, None]
    if total_ is not None:
        losses = softplus(logits_, threshold=_SOFTPLUS_THRESHOLD)
        total_[0] += (losses if share is None else losses * share).sum(dim=0)
    logits_.sigmoid_()
    if share is not None:
        logits_.mul_(share)
    if total_ is not None:
        total_[1] += logits_.sum(dim=0)
    if slope is not None:
        logits_.mul_(slope)
    if out is not logits_:
        out.copy_(logits_)


@torch.no_grad()
def target_and_nearest_cosines(
    work: Workspace, context: ForwardContext, centers: ActiveCenters
) -> tuple[Tensor, Tensor]:
    """Return the cosines of images with the centers of their classes, and the largest with other active centers.

    Both are `[B]`, equal on all ranks, and -inf if no such center is active. Collectives: an all-reduce of `[2, B]`.
    """
    embeddings, shape = context.loss.directions(context.embeddings), context.shape
    found = embeddings.new_full((2, shape.batch), -torch.inf)
    for chunk in shape.chunks():
        each = context.loss.directions(centers.read(chunk)) @ embeddings.T  # [c K, B]
        cosine = each.view(-1, shape.subcenters, shape.batch).amax(dim=1)  # [c, B]
        targets, _ = centers.classes.in_chunk(chunk)
        rows, inside = targets.rows()
        own = torch.where(inside, cosine[rows, targets.images], found[0][targets.images])
        found[0].index_copy_(0, targets.images, own)
        mask_targets_(cosine, targets, -torch.inf)
        torch.maximum(found[1], cosine.amax(dim=0), out=found[1])
    target, nearest = comm.all_reduce_max_(found, work.group)
    return target, nearest


class _Margins(NamedTuple):
    """Targets of all images with their margins; any finite values for an image whose class is on another rank."""

    target: TargetCenters
    logit: Tensor  # [B], with its margin, divided by s
    slopes: Tensor  # [k, B], derivatives by the cosine, and by the norm if norms have a gradient
    hard: HardNegativeRule | None
    state: LossState  # entries that the batch changes


def _margins(work: Workspace, inputs: ForwardInputs) -> _Margins:
    norms, classes = inputs.norms, inputs.centers.classes
    target = inputs.centers.targets(inputs.embeddings)
    cosines = None
    if inputs.loss.needs_cosines:
        cosines = comm.all_reduce_sum_(torch.where(classes.has_target, target.angle.cos(), 0.0), work.group)
    batch = LossInputs(classes.valid, classes.num_valid, classes.drawn_margins, cosines, norms)
    state = inputs.loss.next_state(batch)
    loss = inputs.loss.with_state(state)
    logit, by_cosine, by_norm = loss.logit_with_derivatives(target.angle, norms, loss.assign_draws(batch))
    slopes = by_cosine[None] if by_norm is None else torch.stack([by_cosine, by_norm])
    return _Margins(target, logit, slopes, loss.hard_negative_rule(batch), state)


def _softmax_shift(
    work: Workspace,
    inputs: ForwardInputs,
    scaled: Tensor,
    largest: float | None,
    hard: HardNegativeRule | None,
) -> Tensor | None:
    """Return the shift of the exponents, `[B]`: the largest negative logit on this rank, or None if not needed."""
    highest, embeddings = inputs.loss.max_logit, inputs.embeddings
    if highest <= UNSHIFTED_SCALE:
        return None
    if hard is not None and highest <= 2 * UNSHIFTED_SCALE:
        # Only raised logits are above. Logits that underflow do not contribute to the sum.
        return torch.full_like(embeddings[:, 0], highest - UNSHIFTED_SCALE)
    lowest = torch.full_like(embeddings[:, 0], -highest)
    return _largest_logits(work, inputs, scaled, lowest, largest=largest, hard=hard)


def _largest_logits(
    work: Workspace, inputs: ForwardInputs, scaled: Tensor, largest_: Tensor, **negatives: Any
) -> Tensor:
    """Increase `largest_` `[B]` to the largest logits of negatives on this rank, in a pass over the chunks."""
    for chunk in inputs.shape.chunks():
        _, logits, _ = chunk_logits(work, inputs.centers, inputs.shape, chunk, scaled, inputs.kept)
        targets, correction = inputs.centers.classes.in_chunk(chunk)
        transform_negatives_(logits, correction=correction, **negatives)
        mask_targets_(logits, targets, -torch.inf)
        torch.maximum(largest_, logits.amax(dim=0), out=largest_)
    return largest_


def _with_norms(inputs: ForwardInputs, value: Tensor, target_factors: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the loss with the norm penalty, and its gradient by the norms from targets of this rank, `[B]`."""
    loss, norms, classes = inputs.loss, inputs.norms, inputs.centers.classes
    penalty = None if norms is None else loss.norm_penalty(norms)
    if penalty is None:
        return value, None
    of_images, slope = penalty
    mean = torch.where(classes.valid, of_images, 0.0).double().sum() / classes.num_valid
    gradients = torch.where(classes.has_target, slope / classes.num_valid.to(slope.dtype), 0.0)
    return value + mean.to(value.dtype), gradients + target_factors[1]
