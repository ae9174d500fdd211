"""Whether a run still learns: counted on the device in every step, read only where somebody waits for it anyway."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from partialfc.runtime import comm
from partialfc.runtime.comm import DistContext

_DIGESTED = 1 << 20  # elements at a time


class DivergenceError(Exception):
    """A run whose loss is lost; says since when."""


def check_replicas(state: Mapping[str, Tensor], step: int, dist_ctx: DistContext) -> None:
    """Compare a digest of parameters and buffers over the ranks; waits for the device.

    Raises:
        Diverged: The replicas differ; names the ranks that disagree with most others, and the first tensor.
    """
    everyones = comm.all_gather_object(_digests(state), dist_ctx.host_group)
    usual, count = Counter(everyones).most_common(1)[0]
    if count == dist_ctx.world_size:
        return
    odd = [rank for rank, digests in enumerate(everyones) if digests != usual]
    first = next(
        name
        for name, pair in zip(state, zip(usual, everyones[odd[0]], strict=True), strict=True)
        if pair[0] != pair[1]
    )
    names = f"ranks {', '.join(map(str, odd))}" if 2 * count > dist_ctx.world_size else "the ranks"
    raise DivergenceError(
        f"replicas differ after step {step}: {names} hold other values of {first} than the others; expected equal "
        "parameters and buffers on all ranks; check the memory of their GPUs, and resume from an earlier checkpoint"
    )


def _digests(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    digests = [_digest(tensor) for tensor in state.values()]
    for device in {it.device for it in digests}:
        here = [place for place, it in enumerate(digests) if it.device == device]
        for place, value in zip(here, torch.stack([digests[it] for it in here]).cpu(), strict=True):
            digests[place] = value
    return tuple(int(it) for it in digests)


def _digest(tensor: Tensor) -> Tensor:
    """Return a sum of the bits, each weighted by its position, int64 on the tensor's device."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().reshape(-1).view(kind)
    weights = 2 * torch.arange(min(_DIGESTED, len(bits)), device=tensor.device) + 1
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, part in enumerate(bits.split(_DIGESTED)):
        total += (part * weights[: len(part)]).sum() * (2 * number + 1)
    return total


class TrainingHealth:
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
    def num_skipped(self) -> int:
        """How many steps were skipped since the last that was taken; waits for the device."""
        return int(self._skipped)

    def counters(self) -> Tensor:
        """What `describe_problem` is told, as it is now, on the device."""
        return torch.stack([self._lost, self._skipped])

    def find_problem(self, step: int, max_skipped: int) -> str | None:
        """What is wrong after step `step`, if the run is to end for it; waits for the device."""
        return describe_problem(self.counters().tolist(), step, max_skipped)


def describe_problem(counters: Sequence[float], step: int, max_skipped: int) -> str | None:
    """What is wrong after step `step`, if the run is to end for it. numbers: the health's after it."""
    lost, skipped = map(int, counters)
    if lost:
        return f"diverged: the loss of step {lost} is not finite"
    if skipped >= max_skipped:
        return f"diverged: the gradients of {skipped} steps in a row, up to step {step}, are not finite"
    return None
