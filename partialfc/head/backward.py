"""Update of the active centers, by the gradient of the loss or towards the embeddings of a teacher.

Shapes:
    B: images in the global batch
    N: images with a class of this rank
    c: classes in a chunk
    K: centers per class
    D: components of a center
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.head.centers import ActiveCenters
from partialfc.head.forward import ForwardContext, chunk_logits
from partialfc.head.sampling import ChunkTargets
from partialfc.head.workspace import LogitGrads, Workspace

_MIN_COSINE = 1e-6  # smallest cosine with an embedding of the teacher


def update_centers(
    work: Workspace,
    context: ForwardContext,
    centers: ActiveCenters,
    *,
    weight: Tensor,
    lr: Tensor,
    finite: Tensor,
) -> None:
    """Take one optimizer step of the active centers.

    Args:
        work: Workspace of the head.
        context: Context of the forward.
        centers: Active centers of the forward.
        weight: Factor of the gradient, scalar.
        lr: Learning rate, scalar; 0 in a skipped step.
        finite: Bool scalar, False in a skipped step.
    """
    shape, precision, classes = context.shape, work.precision, centers.classes
    scaled = (context.embeddings * (context.image_factors * weight)[:, None]).to(precision.grads_dtype)
    target_weights = context.target_factors * weight  # [B]
    for chunk in shape.chunks():
        part = (
            context.kept.of(chunk) if context.kept is not None else _recompute(work, context, centers, chunk)
        )
        size = len(part.inverse_norms)  # c K
        d_unit = work.scratch.get("d_unit", (size, work.width), work.dtype)
        precision.mm(d_unit, work.center_grads(part), scaled)
        images = classes.in_chunk(chunk)[0].images
        targets = ChunkTargets(context.target_slots, chunk.start * shape.subcenters, size, images)
        work.kernels.add_target_gradients_(d_unit, targets, context.embeddings, target_weights)
        centers.update(chunk, d_unit, part.inverse_norms, lr, finite)


def update_loss_state(context: ForwardContext, *, weight: Tensor, lr: Tensor, finite: Tensor) -> None:
    """Update the state of the loss, with the arguments of `update_centers`."""
    state = context.loss.state
    learned = {
        name: state[name] - (lr * weight * gradient).to(state[name].dtype)
        for name, gradient in context.state_gradients.items()
    }
    for name, value in (context.next_state | learned).items():
        state[name].copy_(torch.where(finite, value, state[name]))


def follow_teacher(centers: ActiveCenters, student: Tensor, teacher: Tensor, finite: Tensor) -> None:
    """Move the centers of the batch towards the embeddings of a teacher: AdaDistill (arXiv 2407.01332).

    A normalized center w and an image with embeddings f_s and f_t give `alpha w + (1 - alpha) f_t`, where
    `alpha = clip(cos(f_s, f_t) clip(cos(w, f_t), 1e-6, 1), 1e-6, 1)`. Images of one class are averaged, whereas the
    authors' code uses the last one. Their code moves centers before the logits are computed, this one after the step.

    Args:
        centers: Active centers of the step, which have missed no steps.
        student: Normalized embeddings of the backbone, `[B, D]`.
        teacher: Normalized embeddings of the teacher, `[B, D]`.
        finite: Bool scalar, False in a skipped step.
    """
    classes = centers.classes
    num_targets = len(classes.host_target_rows)  # N
    images = classes.images_by_class[len(classes.images_by_class) - num_targets :]
    slots = classes.target_slots.index_select(0, images)  # ascending
    before = centers.gather(slots)  # [N, D], like all tensors below
    center, target = normalize(before), teacher.index_select(0, images)
    nearness = torch.linalg.vecdot(center, target).clamp(_MIN_COSINE, 1.0)
    alpha = (
        torch.linalg.vecdot(student.index_select(0, images), target).mul_(nearness).clamp_(_MIN_COSINE, 1.0)
    )
    moved = torch.lerp(target, center, alpha[:, None])
    # Slots ascend, so that this is the index of the first image of each class.
    first = torch.searchsorted(slots, slots)
    sums = torch.zeros_like(moved).index_add_(0, first, moved)
    after = normalize(sums).index_select(0, first)
    centers.write(slots, torch.where(finite, after, before))


def _recompute(work: Workspace, context: ForwardContext, centers: ActiveCenters, chunk: slice) -> LogitGrads:
    """Compute the logit gradients of a chunk again."""
    _, logits, part = chunk_logits(work, centers, context.shape, chunk, context.scaled, None)
    context.logit_grads_(logits, *centers.classes.in_chunk(chunk), total_=None, out=part.values)
    return part
