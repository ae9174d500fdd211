"""Distillation loss between the embeddings of student and teacher."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.runtime import comm
from partialfc.runtime.comm import OptionalGroup


def cosine_distillation_loss(
    embeddings: Tensor, teacher_embeddings: Tensor, global_batch_size: int, group: OptionalGroup
) -> Tensor:
    """Return the mean of 1 - cos(student, teacher) over the global batch, the same scalar on every rank.

    Its gradient covers this rank's images. Communicates one scalar.

    Args:
        embeddings: Embeddings `[b, D]` of this rank, unnormalized.
        teacher_embeddings: L2-normalized, `[b, D]`; zero rows are ignored.
        global_batch_size: B.
        group: All ranks.
    """
    apart = torch.linalg.vecdot(teacher_embeddings, teacher_embeddings) - torch.linalg.vecdot(
        normalize(embeddings), teacher_embeddings
    )
    own = apart.sum() / global_batch_size
    return own + (comm.all_reduce_sum_(own.detach().clone(), group) - own.detach())
