"""`head:` of a recipe."""

from typing import Annotated, Literal

from msgspec import Meta

from partialfc.config.margins import AnyMargin
from partialfc.config.optimizers import AdamWRule, AnyRule, RowRule, SgdRule, TeacherRule
from partialfc.config.stages import Staged, check_stages, values_of
from partialfc.config.types import Fraction, Natural, Probability, Settings, unit
from partialfc.errors import InputError


class HeadConfig(Settings, frozen=True):
    """The class centres, split across all ranks."""

    sample_rate: Staged[Fraction] = 1.0
    """Share of all classes that a step draws, besides the batch's own (Partial FC)."""
    sampling: Literal["uniform", "hard"] = "uniform"
    """hard: some of those that a step draws are the classes whose centres are nearest to those of the batch's."""
    hard_share: Probability = 0.5
    """Of `sampling: hard`: the share of a step's draw that is near, at most."""
    hard_neighbors: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Of `sampling: hard`: how many classes near each one are known; 4 bytes for each of them on every rank."""
    hard_refresh: Annotated[int, Meta(ge=1), unit("steps")] = 1000
    """Of `sampling: hard`: within so many, which are near each class is found out anew."""
    correction: Literal["none", "log_rate"] = "none"
    """log_rate: the negatives that were drawn stand for all, so that losses compare across sample rates."""
    subcenters: Annotated[int, Meta(ge=1, le=255)] = 1
    """Centres of each class, of which an image's nearest counts, so that wrong labels gather apart (Sub-center ArcFace)."""
    interclass_threshold: Annotated[float, Meta(ge=0, le=1), unit("cosine")] = 0.0
    """Negatives nearer than this are left out, as noisy labels; 0: none."""
    unsampled: Literal["hold", "decay"] = "hold"
    """decay: momentum and weight decay go on, as if every centre took part in every step."""
    centers: Literal["float32", "bfloat16"] = "float32"
    """What centres are stored as."""
    moments: Literal["float32", "bfloat16", "none"] = "float32"
    """What the moments of the centres' optimizer are stored as; none: no momentum."""
    memory: Literal["device", "host"] = "device"
    """Memory of the centers and their moments. host: rows of a step are copied to the device and back."""
    logits_budget: Annotated[Natural, unit("MiB a rank")] = 4096
    """Logits that do not fit are computed twice."""
    products: Literal["auto", "float32", "tf32", "half"] = "auto"
    """Factors of the products, whose sums are in float32. auto: tf32 on a GPU; half: float16 and bfloat16."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """auto: Triton's on a GPU, where it is installed."""
    optim: AnyRule | None = None
    """The optimizer of the class centres; unset: the rule and rate of the top level's optim."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages("head", self)
        if self.memory != "device" and self.largest_rate == 1:
            raise InputError(
                f"head.memory: {self.memory} brings the sampled rows to the device; with head.sample_rate: 1 "
                "these are all; wanted a rate below 1, or head.memory: device"
            )
        if self.sampling == "hard":
            self._check_hard()

    @property
    def largest_rate(self) -> float:
        """Of all stages of `sample_rate`."""
        return max(values_of(self.sample_rate))

    @property
    def samples(self) -> bool:
        """Whether there are steps that do not work on all classes."""
        return min(values_of(self.sample_rate)) < 1

    def _check_hard(self) -> None:
        if not self.samples:
            raise InputError(
                "head.sampling: hard wants a head.sample_rate below 1: at 1 every class takes part"
            )
        for name, found, wanted in (("memory", self.memory, "device"), ("subcenters", self.subcenters, 1)):
            if found != wanted:
                raise InputError(
                    f"head.{name}: {found}; wanted {wanted}, as head.sampling: hard compares all centres"
                )

    def check_with(self, rule: RowRule, margin: AnyMargin) -> None:
        """InputError where class centres that move by `rule` cannot be treated so, or those of `margin`."""
        if self.unsampled == "decay" and not isinstance(rule, SgdRule):
            raise InputError(
                "head.unsampled: decay needs optim.name: sgd, whose skipped steps are one product; "
                "AdamW's are not, and centres that follow a teacher have none"
            )
        if self.subcenters > 1 and isinstance(rule, TeacherRule):
            raise InputError(
                f"head.subcenters: {self.subcenters}; wanted 1, as class centres follow a teacher"
            )
        if not margin.on_sphere:
            self._check_linear(rule)
        if self.moments == "none" and isinstance(rule, AdamWRule):
            raise InputError("head.moments: none needs optim.name: sgd; AdamW is its moments")

    def _check_linear(self, rule: RowRule) -> None:
        """Where rows are no directions."""
        for name, found, wanted in (
            ("head.subcenters", self.subcenters, 1),
            ("head.interclass_threshold", self.interclass_threshold, 0),
            ("head.sampling", self.sampling, "uniform"),
        ):
            if found != wanted:
                raise InputError(f"{name}: {found}; wanted {wanted}, as margin.name: linear has no cosines")
        if isinstance(rule, TeacherRule):
            raise InputError(
                "margin.name: linear has no cosines, which class centres that follow a teacher need"
            )
