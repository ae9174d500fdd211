"""What a student learns of a teacher image by image, beside what the class centres tell it."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.runtime import comm
from partialfc.runtime.comm import OptionalGroup


def cosine_distillation_loss(
    embeddings: Tensor, teacher_embeddings: Tensor, global_batch_size: int, group: OptionalGroup
) -> Tensor:
    """The mean over the global batch of 1 - cos(student, teacher), the same scalar on every rank; the gradient is that of
    this rank's images. One all-reduce of a scalar.

    embeddings: [b, D] of this rank's images, of any length; teacher: [b, D] of length 1, or 0 for images that count for
    nothing; batch: B.
    """
    apart = torch.linalg.vecdot(teacher_embeddings, teacher_embeddings) - torch.linalg.vecdot(
        normalize(embeddings), teacher_embeddings
    )
    own = apart.sum() / global_batch_size
    return own + (comm.all_reduce_sum_(own.detach().clone(), group) - own.detach())
