"""Class centres that follow a teacher: AdaDistill (arXiv 2407.01332).

Legend: B images in the global batch, N of them with a class of this rank, D embedding width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.head.active_rows import ActiveRows
from partialfc.head.centers import Centers
from partialfc.head.checks import described

_LEAST = 1e-6


def check_teacher(embeddings: Tensor | None, centers: Centers, images: int) -> None:
    """Of an update: a teacher's embeddings of this rank's images, where the centres follow it, and only there."""
    shape, device = (images, centers.width), centers.device
    if embeddings is None and centers.follow_teacher:
        raise ValueError("teacher: found none; wanted its embeddings [b, D], which class centres follow")
    if embeddings is not None and not centers.follow_teacher:
        raise ValueError("teacher: found embeddings; wanted none, but with optim=TeacherRule()")
    if embeddings is None:
        return
    if not embeddings.is_floating_point() or embeddings.device != device or tuple(embeddings.shape) != shape:
        raise ValueError(f"teacher: found {described(embeddings)}; wanted floats {list(shape)} on {device}")


def follow_teacher(rows: ActiveRows, student: Tensor, teacher: Tensor, finite: Tensor) -> None:
    """Move the centres of a batch's classes to the teacher's embeddings, where the bool scalar `finite` is true.

    student, teacher: [B, D] of length 1. A centre w of length 1 and an image with embeddings f_s and f_t make
    alpha w + (1 - alpha) f_t, with alpha = clip(cos(f_s, f_t) clip(cos(w, f_t), 1e-6, 1), 1e-6, 1): the better the
    student, and the nearer the centre, the less it moves. Of several images of a class the mean is taken, where the
    authors' code takes the last; and it moves centres before the logits, not after the step.
    """
    classes = rows.classes
    slots, images = classes.target_slots, classes.target_positions
    before = rows.gather_targets(slots)  # [N, D], as all below
    center, wanted = normalize(before), teacher.index_select(0, images)
    nearness = torch.linalg.vecdot(center, wanted).clamp(_LEAST, 1.0)
    alpha = torch.linalg.vecdot(student.index_select(0, images), wanted).mul_(nearness).clamp_(_LEAST, 1.0)
    moved = torch.lerp(wanted, center, alpha[:, None])
    # Slots ascend: each image's place is that of the first image of its class.
    first = torch.searchsorted(slots, slots)
    together = torch.zeros_like(moved).index_add_(0, first, moved)
    after = normalize(together).index_select(0, first)
    rows.write_targets(slots, torch.where(finite, after, before))
