"""Section `head:` of a recipe."""

from typing import Annotated, Literal

from msgspec import Meta

from partialfc.config.losses import AnyLoss
from partialfc.config.optimizers import CenterAdamW, CenterOptimizer, CenterSGD, CenterUpdate, FollowTeacher
from partialfc.config.scheduled import Scheduled, endpoint_values, validate_schedules
from partialfc.config.types import Fraction, FractionBelowOne, NonNegativeInt, Settings, with_unit
from partialfc.errors import InputError


class HeadConfig(Settings, frozen=True):
    """Class centers, sharded over all ranks."""

    sample_rate: Scheduled[Fraction] = 1.0
    """Fraction of all classes that a step samples in addition to those of the batch (Partial FC)."""
    sampling: Literal["uniform", "hard"] = "uniform"
    """Sampling of negatives. hard (experimental): some have centers near those of the batch."""
    hard_fraction: FractionBelowOne = 0.5
    """Largest fraction of hard negatives among the sampled classes, with `sampling: hard`."""
    hard_neighbors: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Neighbors stored per class, with `sampling: hard`; each takes 4 bytes on every rank."""
    hard_refresh_steps: Annotated[int, Meta(ge=1), with_unit("steps")] = 1000
    """Period in which all neighbor lists are updated, with `sampling: hard`."""
    logit_correction: Literal["none", "log_q"] = "none"
    """Correction of sampled negatives. log_q: add log(1 / rate), so that losses are comparable across sample rates."""
    subcenters: Annotated[int, Meta(ge=1, le=255)] = 1
    """Centers per class; the nearest one counts for an image, which separates label noise (Sub-center
    ArcFace).
    """
    interclass_threshold: Annotated[float, Meta(ge=0, le=1), with_unit("cosine")] = 0.0
    """Cosine above which negatives are ignored as label noise; 0: no limit."""
    sample_on: Literal["host", "device"] = "host"
    """Processor that samples the classes of a step. device (experimental): saves milliseconds of the host if 100,000
    rows or more are active on a rank."""
    unsampled: Literal["hold", "decay"] = "hold"
    """Centers that are not sampled. hold: no change; decay: momentum and weight decay apply as in a dense optimizer."""
    centers_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage dtype of the centers."""
    optim_state_dtype: Literal["float32", "bfloat16", "none"] = "float32"
    """Storage dtype of the optimizer state of the centers; none: no momentum."""
    memory: Literal["device", "host"] = "device"
    """Memory of the centers and their moments. host: rows of a step are copied to the device and back."""
    logits_budget: Annotated[NonNegativeInt, with_unit("MiB per rank")] = 4096
    """Memory for logit gradients; if they do not fit, logits are computed twice."""
    matmul_precision: Literal["auto", "float32", "tf32", "half"] = "auto"
    """Precision of the factors of matrix products; sums are in float32. auto: tf32 on a GPU; half: float16 for
    logits, bfloat16 for their gradients."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Implementation of the kernels. auto: triton on a GPU if it is installed, otherwise torch."""
    optim: CenterOptimizer | None = None
    """Optimizer of the class centers; unset: optimizer and learning rate of the section `optim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_schedules("head", self)
        if self.memory != "device" and self.max_sample_rate == 1:
            raise InputError(
                f"head.memory: {self.memory} copies the sampled rows to the device; requires "
                "head.sample_rate below 1, or head.memory: device"
            )
        if self.sampling == "hard":
            self._validate_hard_sampling()
        if self.sample_on == "device":
            self._validate_device_sampling()

    @property
    def max_sample_rate(self) -> float:
        """Largest sample rate over the schedule."""
        return max(endpoint_values(self.sample_rate))

    @property
    def uses_sampling(self) -> bool:
        """True if some steps sample classes."""
        return min(endpoint_values(self.sample_rate)) < 1

    def _validate_hard_sampling(self) -> None:
        if not self.uses_sampling:
            raise InputError("head.sampling: hard requires head.sample_rate below 1")
        for name, found, expected in (("memory", self.memory, "device"), ("subcenters", self.subcenters, 1)):
            if found != expected:
                raise InputError(
                    f"head.{name}: {found}; expected {expected}, as head.sampling: hard compares all centers"
                )

    def _validate_device_sampling(self) -> None:
        for name, found, expected in (
            ("memory", self.memory, "device"),
            ("sampling", self.sampling, "uniform"),
            ("unsampled", self.unsampled, "hold"),
        ):
            if found != expected:
                raise InputError(
                    f"head.{name}: {found}; expected {expected}, as head.sample_on: device leaves no indices on the host"
                )

    def validate_with(self, optimizer: CenterUpdate, loss: AnyLoss) -> None:
        """Raise InputError if the settings are incompatible with the center optimizer or the loss."""
        if self.unsampled == "decay" and not isinstance(optimizer, CenterSGD):
            raise InputError(
                "head.unsampled: decay requires optim.name: sgd; it is undefined for adamw and for centers that "
                "follow a teacher"
            )
        if self.subcenters > 1 and isinstance(optimizer, FollowTeacher):
            raise InputError(
                f"head.subcenters: {self.subcenters}; expected 1, as class centers follow a teacher"
            )
        if not loss.on_sphere:
            self._validate_linear(optimizer)
        if self.optim_state_dtype == "none" and isinstance(optimizer, CenterAdamW):
            raise InputError("head.optim_state_dtype: none requires optim.name: sgd")

    def _validate_linear(self, optimizer: CenterUpdate) -> None:
        """Raise InputError for settings that need normalized centers."""
        for name, found, expected in (
            ("head.subcenters", self.subcenters, 1),
            ("head.interclass_threshold", self.interclass_threshold, 0),
            ("head.sampling", self.sampling, "uniform"),
        ):
            if found != expected:
                raise InputError(f"{name}: {found}; expected {expected}, as loss.name: linear has no cosines")
        if isinstance(optimizer, FollowTeacher):
            raise InputError(
                "loss.name: linear has no cosines, which class centers that follow a teacher require"
            )
