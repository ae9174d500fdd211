"""PartialFC without shards and without economy: every formula as its paper writes it, gradients by
autograd.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partialfc import config
from partialfc.head import sampling


def dense_loss(
    embeddings: Tensor,  # [B, D]
    weight: Tensor,  # [C, D]
    labels: Tensor,  # [B]
    margin: config.AnyMargin,
    *,
    active: Tensor,  # [C] bool
    drawn: Tensor | None = None,  # [B]
    logit_correction: float | Tensor = 0.0,  # added to the logits of active classes that are not in the batch
    interclass_threshold: float = 0.0,
) -> Tensor:
    valid = labels >= 0
    labels = labels[valid]
    cosine = normalize(embeddings)[valid] @ normalize(weight).T
    own = cosine.gather(1, labels[:, None])[:, 0]
    target = target_logit(margin, own, ordered(margin, own, None if drawn is None else drawn[valid]))
    in_batch = torch.zeros_like(active).index_fill_(0, labels, True)
    logits = cosine * margin.scale + torch.where(in_batch, 0.0, logit_correction)
    logits = logits.masked_fill(~active, -torch.inf)
    if interclass_threshold > 0:
        logits = logits.masked_fill(cosine > interclass_threshold, -torch.inf)
    logits = logits.scatter(1, labels[:, None], margin.scale * target[:, None])
    return cross_entropy(logits, labels) if len(labels) else (embeddings * 0).sum()


def drawn_classes(num_classes: int, rate: float, seed: int, step: int) -> NDArray[np.int64]:
    """Those that a step draws, of all ranks together."""
    count = sampling.num_strata(num_classes, rate)
    return sampling.sampled(num_classes, count, seed, step, range(num_classes))


def ordered(margin: config.AnyMargin, cosine: Tensor, drawn: Tensor | None) -> Tensor | None:
    order = getattr(margin, "order", "none")
    if drawn is None or order == "none":
        return drawn
    ascending = sorted(drawn.tolist())
    nearest_first = sorted(range(len(drawn)), key=lambda image: -cosine[image].item())
    assigned = [0.0] * len(drawn)
    for place, image in enumerate(nearest_first):
        if order == "paper":  # the nearest gets the smallest
            assigned[image] = ascending[place]
        else:  # the authors' indexing: image number `place` gets the margin of rank `image`
            assigned[place] = ascending[image]
    return torch.tensor(assigned, dtype=drawn.dtype)


def target_logit(margin: config.AnyMargin, cosine: Tensor, drawn: Tensor | None) -> Tensor:
    angle = cosine.acos()
    m1, m2, m3 = 1.0, torch.zeros_like(cosine), torch.zeros_like(cosine)
    match margin:
        case config.ArcFace():
            m2 = m2 + margin.margin
        case config.CosFace():
            m3 = m3 + margin.margin
        case config.Combined():
            m1, m2, m3 = margin.m1, m2 + margin.m2, m3 + margin.m3
        case config.ElasticArcFace():
            m2 = drawn
        case config.ElasticCosFace():
            m3 = drawn
    target = (m1 * angle + m2).cos() - m3
    if getattr(margin, "beyond_pi", "wrap") == "linear":
        beyond = -1 - m3 + angle.cos() - ((math.pi - m2) / m1).cos()
        target = torch.where(m1 * angle + m2 > math.pi, beyond, target)
    if getattr(margin, "gradient", "exact") == "detached":
        target = cosine + (target - cosine).detach()
    return target
