"""The mathematics of the head in ten lines: formulas as in the papers, gradients by autograd, no optimization.

`sharded_loss` is what `PartialFC` computes, and `dense_loss` is the same on one process. Tests, `doctor` and the
documentation compare the head with them; training does not use them.

Shapes:
    b: images of this rank
    B: images of all ranks
    C: classes
    n: classes of this rank
    D: components
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partialfc import config
from partialfc.runtime import comm
from partialfc.runtime.comm import OptionalGroup


def sharded_loss(
    local: Tensor, centers: Tensor, labels: Tensor, owned: range, loss: Any, group: OptionalGroup
) -> Tensor:
    """Return the loss with the classes sharded over ranks, equal on all ranks.

    The backward of a rank computes the contribution of its own classes. The gradient of the centers is complete; the
    backward of the gather sums the gradient of `local` over the ranks.

    Args:
        local: Embeddings of this rank, `[b, D]`.
        centers: Centers of the classes `owned`, all active, `[n, D]`.
        labels: Labels of all ranks, none ignored, `[B]`.
        owned: Classes of this rank.
        loss: Settings of a loss without stages, state, order and random margins.
        group: Process group.
    """
    embeddings, _ = comm.all_gather_with_grad(normalize(local), None, group)  # [B, D]
    cosine = embeddings @ normalize(centers).T  # [B, n]
    images = ((labels >= owned.start) & (labels < owned.stop)).nonzero()[:, 0]  # whose class is on this rank
    own = images, labels[images] - owned.start
    logits = loss.scale * cosine.index_put(own, target_logit(loss, cosine[own], None))
    largest = comm.all_reduce_max_(logits.detach().amax(1), group)
    total = _summed((logits - largest[:, None]).exp().sum(1), group)
    target = _summed(torch.zeros_like(total).index_put((images,), logits[own]), group)
    return (total.log() + largest - target).mean()


def dense_loss(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss: Any,
    *,
    active: Tensor,
    drawn: Tensor | None = None,
    logit_correction: float | Tensor = 0.0,
    interclass_threshold: float = 0.0,
) -> Tensor:
    """Return the loss on one process, with sampled classes.

    Args:
        embeddings: Embeddings of the global batch, `[B, D]`.
        weight: Centers, `[C, D]`.
        labels: Labels, `[B]`; -1 is ignored.
        loss: Settings of a loss without stages and state.
        active: Mask of the active classes, `[C]`.
        drawn: Random margins, `[B]`, or None.
        logit_correction: Term added to the logits of active classes that are not in the batch.
        interclass_threshold: Largest cosine of a negative that takes part; 0 for no limit.
    """
    valid = labels >= 0
    labels = labels[valid]
    cosine = normalize(embeddings)[valid] @ normalize(weight).T
    own = cosine.gather(1, labels[:, None])[:, 0]
    target = target_logit(loss, own, ordered(loss, own, None if drawn is None else drawn[valid]))
    in_batch = torch.zeros_like(active).index_fill_(0, labels, True)
    logits = cosine * loss.scale + torch.where(in_batch, 0.0, logit_correction)
    logits = logits.masked_fill(~active, -torch.inf)
    if interclass_threshold > 0:
        logits = logits.masked_fill(cosine > interclass_threshold, -torch.inf)
    logits = logits.scatter(1, labels[:, None], loss.scale * target[:, None])
    return cross_entropy(logits, labels) if len(labels) else (embeddings * 0).sum()


def target_logit(loss: Any, cosine: Tensor, drawn: Tensor | None) -> Tensor:
    """Return the target logits divided by s, `[N]`, from the cosines with the own centers, `[N]`."""
    angle = cosine.acos()
    settings: Any = loss
    m1: Any = 1.0
    m2: Any = torch.zeros_like(cosine)
    m3: Any = torch.zeros_like(cosine)
    match loss:
        case config.ArcFace():
            m2 = m2 + settings.margin
        case config.CosFace():
            m3 = m3 + settings.margin
        case config.CombinedMargin():
            m1, m2, m3 = settings.m1, m2 + settings.m2, m3 + settings.m3
        case config.ElasticArcFace():
            m2 = drawn
        case config.ElasticCosFace():
            m3 = drawn
    target = (m1 * angle + m2).cos() - m3
    if getattr(loss, "beyond_pi", "wrap") == "linear":
        beyond = -1 - m3 + angle.cos() - ((math.pi - m2) / m1).cos()
        target = torch.where(m1 * angle + m2 > math.pi, beyond, target)
    if getattr(loss, "gradient", "exact") == "detached":
        target = cosine + (target - cosine).detach()
    return target


def ordered(loss: Any, cosine: Tensor, drawn: Tensor | None) -> Tensor | None:
    """Return the random margin of each image, `[N]`."""
    order = getattr(loss, "order", "none")
    if drawn is None or order == "none":
        return drawn
    ascending = sorted(drawn.tolist())
    nearest_first = sorted(range(len(drawn)), key=lambda image: -cosine[image].item())
    assigned = [0.0] * len(drawn)
    for place, image in enumerate(nearest_first):
        if order == "paper":  # the nearest image gets the smallest margin
            assigned[image] = ascending[place]
        else:  # the authors' indexing: image `place` gets the margin of rank `image`
            assigned[place] = ascending[image]
    return torch.tensor(assigned, dtype=drawn.dtype)


def _summed(values: Tensor, group: OptionalGroup) -> Tensor:
    """Return the sum over ranks, with the gradient of this rank's term only."""
    return values + (comm.all_reduce_sum_(values.detach().clone(), group) - values.detach())
