"""Whether a run still learns: counted on the device in every step, read only where somebody waits for it anyway."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Diverged(Exception):
    """A run whose loss is lost; says since when."""


class Health:
    """Skipped steps and lost losses, the same on every rank."""

    def __init__(self, device: torch.device) -> None:
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)  # steps in a row
        self._lost = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # the first step without a loss; 0: none

    def update(self, step: int, finite: Tensor, loss: Tensor) -> None:
        """After step `step`, counted from 1; finite: bool scalar on the device, whether the step was taken."""
        self._skipped.add_(1).mul_(~finite)
        first = (self._lost == 0) & ~loss.isfinite()
        self._lost.add_(first * step)

    @property
    def skipped(self) -> int:
        """How many steps were skipped since the last that was taken; waits for the device."""
        return int(self._skipped)

    def numbers(self) -> Tensor:
        """What `problem_of` is told, as it is now, on the device."""
        return torch.stack([self._lost, self._skipped])

    def problem(self, step: int, max_skipped: int) -> str | None:
        """What is wrong after step `step`, if the run is to end for it; waits for the device."""
        return problem_of(self.numbers().tolist(), step, max_skipped)


def problem_of(numbers: Sequence[float], step: int, max_skipped: int) -> str | None:
    """What is wrong after step `step`, if the run is to end for it. numbers: the health's after it."""
    lost, skipped = map(int, numbers)
    if lost:
        return f"diverged: the loss of step {lost} is not finite"
    if skipped >= max_skipped:
        return f"diverged: the gradients of {skipped} steps in a row, up to step {step}, are not finite"
    return None
