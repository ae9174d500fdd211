"""Health of a run: counted on the device in every step, read on the host only when it synchronizes anyway."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from partialfc.runtime import comm
from partialfc.runtime.comm import DistContext

_DIGESTED = 1 << 20  # elements per block


class DivergenceError(Exception):
    """Error of a run whose loss or gradients became non-finite, or whose replicas differ."""


def check_replicas(state: Mapping[str, Tensor], step: int, dist_ctx: DistContext) -> None:
    """Compare a digest of parameters and buffers over the ranks; synchronizes with the device.

    Raises:
        DivergenceError: If the replicas differ. The message contains the ranks that disagree with most
            others, and the first such tensor.
    """
    gathered = comm.all_gather_object(tensor_digests(state), dist_ctx.host_group)
    usual, count = Counter(gathered).most_common(1)[0]
    if count == dist_ctx.world_size:
        return
    odd = [rank for rank, digests in enumerate(gathered) if digests != usual]
    first = next(
        name
        for name, pair in zip(state, zip(usual, gathered[odd[0]], strict=True), strict=True)
        if pair[0] != pair[1]
    )
    names = f"ranks {', '.join(map(str, odd))}" if 2 * count > dist_ctx.world_size else "the ranks"
    raise DivergenceError(
        f"replicas differ after step {step}: {names} have different values of {first} than the others; expected equal "
        "parameters and buffers on all ranks; check the memory of their GPUs and resume from an earlier checkpoint"
    )


def tensor_digests(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return a digest of the bits of each tensor."""
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
    """Counts of skipped steps and the first non-finite loss. Equal on all ranks."""

    def __init__(self, device: torch.device) -> None:
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)  # consecutive skipped steps
        # First step with a non-finite loss; 0 if none.
        self._lost = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, step: int, finite: Tensor, loss: Tensor) -> None:
        """Count a step.

        Args:
            step: Number of completed steps.
            finite: Whether the step was applied, a bool scalar on the device.
            loss: Loss of the step, a scalar on the device.
        """
        self._skipped.add_(1).mul_(~finite)
        first = (self._lost == 0) & ~loss.isfinite()
        self._lost.add_(first * step)

    @property
    def num_skipped(self) -> int:
        """Number of consecutive skipped steps; synchronizes with the device."""
        return int(self._skipped)

    def counters(self) -> Tensor:
        """Return the current counters for `describe_problem`, on the device."""
        return torch.stack([self._lost, self._skipped])

    def find_problem(self, step: int, max_skipped: int) -> str | None:
        """Return the problem that ends the run after `step` steps, or None; synchronizes with the device."""
        return describe_problem(self.counters().tolist(), step, max_skipped)


def describe_problem(counters: Sequence[float], step: int, max_skipped: int) -> str | None:
    """Return the problem that ends the run after `step` steps, or None, from `TrainingHealth.counters`."""
    lost, skipped = map(int, counters)
    if lost:
        return f"diverged: non-finite loss at step {lost}"
    if skipped >= max_skipped:
        return f"diverged: non-finite gradients in {skipped} consecutive steps up to step {step}"
    return None
