"""Classes with K centres each, of which an image's nearest counts: Sub-center ArcFace (Deng et al., ECCV 2020). Images with
wrong labels gather at centres of their own, and pull the others no more.

Legend: c classes, K centres of each, stored side by side in a row [K D]; B images, N of them targets, D width.
"""

import torch
from torch import Tensor


def nearest(logits: Tensor, centers: int, *, out: Tensor, winners_: Tensor) -> None:
    """The largest logits [c, B] of classes with `centers` each, from those of all centres [c K, B]; `winners_` [c, B], uint8,
    gets which it is, the first of several. `out` may be part of `logits` where that is no longer wanted.
    """
    each = logits.view(-1, centers, logits.shape[1])
    found = each.max(dim=1)
    winners_.copy_(found.indices)
    out.copy_(found.values)


def spread(values: Tensor, winners: Tensor, centers: int, *, out: Tensor) -> Tensor:
    """Values [c, B] of classes as those of their centres [c K, B]: at the winners, 0 elsewhere."""
    each = out.view(-1, centers, values.shape[1])
    for place in range(centers):
        torch.mul(values, winners == place, out=each[:, place])
    return out
