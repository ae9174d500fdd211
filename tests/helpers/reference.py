"""The dense head, and the classes that a step draws: what tests hold the sharded head against."""

import numpy as np
from numpy.typing import NDArray

from partialfc.head import sampling
from partialfc.head.reference import dense_loss, ordered, sharded_loss, target_logit

__all__ = ["dense_loss", "drawn_classes", "ordered", "sharded_loss", "target_logit"]


def drawn_classes(num_classes: int, rate: float, seed: int, step: int) -> NDArray[np.int64]:
    """Those that a step draws, of all ranks together."""
    count = sampling.num_sampled_classes(num_classes, rate)
    return sampling.sample_classes(num_classes, count, seed, step, range(num_classes))
