"""Loss scale of a step, and whether the step is skipped, read from a GradScaler."""

from typing import NamedTuple

import torch
from torch import Tensor


class Scaling(NamedTuple):
    """The loss scale of a step, and whether the step is taken."""

    finite: Tensor | None  # bool scalar on the device; None: the step is taken
    loss_scale: float | Tensor


def scaling_of(
    scaler: torch.amp.GradScaler | None,
    finite: Tensor | None,
    loss_scale: float | Tensor,
    device: torch.device,
) -> Scaling:
    """Return how a step was scaled, from a GradScaler or from the two values it stands for. Nothing waits.

    Raises:
        ValueError: The scaler and the values are both given, or a scale without `finite`: centers would move in a step
            that the backbone skips.
        RuntimeError: The scaler has examined no gradients of this step.
    """
    scaled = isinstance(loss_scale, Tensor) or loss_scale != 1.0
    if scaler is None:
        if scaled and finite is None:
            raise ValueError(
                "update(loss_scale=): expected finite= as well, else centers move in steps that GradScaler skips; "
                "pass scaler=scaler instead of both"
            )
        return Scaling(finite, loss_scale)
    if scaled or finite is not None:
        raise ValueError(
            "update(scaler=): expected neither finite= nor loss_scale=, which are read from the scaler"
        )
    if not scaler.is_enabled():
        return Scaling(None, 1.0)
    # GradScaler has no public flag; its own update() reads the same.
    found = [
        it.to(device, non_blocking=True)
        for state in scaler._per_optimizer_states.values()
        for it in state["found_inf_per_device"].values()
    ]
    scale = scaler._get_scale_async()
    if not found or scale is None:
        raise RuntimeError(
            "update(scaler=): the scaler has examined no gradients of this step; call head.update() after "
            "scaler.step(optimizer) and before scaler.update()"
        )
    return Scaling(torch.stack(found).sum() == 0, scale.to(device, non_blocking=True))
