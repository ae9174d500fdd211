"""Sampling on the device: the host computes what depends on the labels, a kernel computes the sampled rows.

The result is that of `sampling.sample_classes`. The host's cost is O(B) instead of O(S), and no rows are copied.

Shapes:
    B: images in the global batch
    S: active classes of this rank
    U: different classes of this rank in the batch
    A: those of them that are not sampled
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partialfc.head.kernels.torch_sampling import SampleParameters
from partialfc.head.strata import Ints, Strata
from partialfc.runtime import counter_rng


@dataclass(frozen=True)
class SamplePlan:
    """Sampled rows of this rank in a step, before they are computed."""

    parameters: Tensor  # [10] int64, `SampleParameters`
    inserted: (
        Tensor  # [2, A] int64, rows that are active for the batch only, ascending, and their active indices
    )
    target_slots: Tensor  # [U] int64, active indices of the classes in the batch
    num_active: int  # S
    correction: float | None  # term of the logits of sampled classes that are not in the batch
    noise: bool  # whether rows have noise

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the device needs, by name."""
        return {"parameters": self.parameters, "inserted": self.inserted, "unique_slots": self.target_slots}

    def complete(
        self,
        tensors: Mapping[str, Tensor],
        sample_rows: Callable[..., tuple[Tensor, Tensor | None]],
        dtype: torch.dtype,
    ) -> dict[str, Tensor | None]:
        """Compute the rows, their noise and the logit correction on the device.

        Args:
            tensors: Those of `tensors()`, on the device.
            sample_rows: Kernel with the signature of `torch_sampling.sample_rows`.
            dtype: Dtype of the logit correction.

        Returns:
            Fields of `ActiveClasses`.
        """
        rows, noise = sample_rows(
            tensors["parameters"], tensors["inserted"], self.num_active, noise=self.noise
        )
        correction = None
        if self.correction is not None:
            correction = torch.full((self.num_active,), self.correction, dtype=dtype, device=rows.device)
            correction.index_fill_(0, tensors["unique_slots"], 0.0)
        return {"rows": rows, "rounding_noise": noise, "logit_correction": correction}


def plan_sample(
    strata: Strata, targets: Ints, *, noise_key: int | None, correction: float | None
) -> SamplePlan:
    """Plan the sampled rows of a step.

    Args:
        strata: Strata of the step on this rank.
        targets: Rows of the classes in the batch, ascending, without repeats, `[U]`.
        noise_key: Key of the noise of stochastic rounding; None: rows have no noise.
        correction: Term of the logits of sampled classes that are not in the batch; None: without a correction.

    Returns:
        Plan with tensors on the host.
    """
    first, second = strata.pieces()
    places = np.empty_like(targets)  # number of sampled rows before each target
    sampled = np.empty(len(targets), bool)
    for piece, before in ((first, 0), (second, first.count)):
        inside = slice(*np.searchsorted(targets, (piece.rows.start, piece.rows.stop)).tolist())
        positions = targets[inside] - piece.offset
        stratum = strata.stratum_of(positions)
        drawn = strata.draw(stratum)
        sampled[inside] = drawn == positions
        places[inside] = before + np.clip(stratum - piece.first + (drawn < positions), 0, piece.count)
    new = targets[~sampled]
    slots = places + np.searchsorted(new, targets)
    parameters = SampleParameters(
        key=counter_rng.as_int64(strata.key),
        num_classes=strata.num_classes,
        num_strata=strata.count,
        first_stratum=first.first,
        second_stratum=second.first,
        first_count=first.count,
        first_offset=first.offset,
        second_offset=second.offset,
        noise_key=0 if noise_key is None else counter_rng.as_int64(noise_key),
        first_class=strata.local_classes.start,
    )
    return SamplePlan(
        parameters=torch.tensor(parameters),
        inserted=torch.from_numpy(np.stack([new, slots[~sampled]])),
        target_slots=torch.from_numpy(slots),
        num_active=first.count + second.count + len(new),
        correction=correction,
        noise=noise_key is not None,
    )
