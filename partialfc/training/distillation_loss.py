"""What a student learns of a teacher image by image, beside what the class centres tell it."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.runtime import comm
from partialfc.runtime.comm import Group


def regression(embeddings: Tensor, teacher: Tensor, batch: int, group: Group) -> Tensor:
    """The mean over the global batch of 1 - cos(student, teacher), the same scalar on every rank; the gradient is that of
    this rank's images. One all-reduce of a scalar.

    embeddings: [b, D] of this rank's images, of any length; teacher: [b, D] of length 1, or 0 for images that count for
    nothing; batch: B.
    """
    apart = torch.linalg.vecdot(teacher, teacher) - torch.linalg.vecdot(normalize(embeddings), teacher)
    own = apart.sum() / batch
    return own + (comm.sum_(own.detach().clone(), group) - own.detach())
