"""What is shown of a run: which number stands in which group, histograms, pictures.

Groups are shown in the order of their names: `loss` and `verification` come first, then the run's workings.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import Pixels
from partialfc.monitoring.loggers.logger import Logger, Setting

# Of a line of numbers: the group that each stands in.
_GROUPS = {
    "loss": "loss",
    "rate": "workings_optimizer",
    "gradient_norm": "workings_optimizer",
    "epoch": "workings_optimizer",
    "skipped": "workings_optimizer",
    "images_per_second": "workings_speed",
    "data_wait": "workings_data",
    "longest_data_wait": "workings_data",
    "replaced": "workings_data",
    "epoch_data_wait": "workings_data",
    "target_angle": "workings_angle",
    "target_angle_std": "workings_angle",
    "nearest_angle": "workings_angle",
    "never_positive": "workings_classes",
}
TIME, MEMORY = "workings_time", "workings_memory"
_SCORES = "verification"


class Board:
    """Puts what a run says into groups, for a logger."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def numbers(self, step: int, line: Mapping[str, float]) -> None:
        """Show each number of a line in its group."""
        known = {f"{_GROUPS[name]}/{name}": value for name, value in line.items() if name in _GROUPS}
        self._logger.scalars(step, known)

    def group(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Show the numbers of one group."""
        self._logger.scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def scores(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Show the scores of an evaluation set, without the ends of their intervals."""
        shown = {it: value for it, value in values.items() if not it.endswith(("_low", "_high"))}
        self.group(step, f"{_SCORES}/{name}", shown)

    def histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Show the distribution of finite values; nothing where there are none."""
        if len(values):
            self._logger.histogram(step, name, values)

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        """Show an RGB image [H, W, 3]."""
        self._logger.picture(step, name, pixels)

    def outcome(self, settings: Mapping[str, Setting], scores: Mapping[str, Mapping[str, float]]) -> None:
        """Show what came of which settings: the last scores of each set, which are shown already."""
        values = {
            f"{_SCORES}/{name}/{it}": value
            for name, found in scores.items()
            for it, value in found.items()
            if not it.endswith(("_low", "_high"))
        }
        self._logger.outcome(settings, values)
