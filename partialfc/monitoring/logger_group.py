"""What is shown of a run: which number stands in which group, histograms, pictures.

Groups are shown in the order of their names: `loss` and `verification` come first, then the run's workings.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

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
TIME, MEMORY, SETTINGS = "workings_time", "workings_memory", "workings_settings"
_SCORES = "verification"


class Board:
    """Puts what a run says into groups, for all its loggers. What one of them cannot write is told, and stops neither the
    others nor the run.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        tell: Callable[[OSError], None],
        pictures: Literal["local", "remote", "off"] = "local",
    ) -> None:
        self._loggers, self._tell = loggers, tell
        self._pictured: Sequence[Logger] = []  # those that get pictures
        if pictures != "off":
            self._pictured = [it for it in loggers if pictures == "remote" or not it.is_remote]

    def close(self) -> None:
        """Bring everything to where it is kept."""
        self._each(lambda it: it.close())

    def recipe(self, text: str, settings: Mapping[str, Setting]) -> None:
        """Show the run's recipe, in YAML and by its keys."""
        self._each(lambda it: it.recipe(text, settings))

    def numbers(self, step: int, line: Mapping[str, float]) -> None:
        """Show each number of a line in its group."""
        known = {f"{_GROUPS[name]}/{name}": value for name, value in line.items() if name in _GROUPS}
        self._scalars(step, known)

    def group(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Show the numbers of one group."""
        self._scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def scores(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Show the scores of an evaluation set, without the ends of their intervals."""
        self._scalars(step, {f"{_SCORES}/{name}/{it}": value for it, value in _shown(values).items()})

    def histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Show the distribution of finite values; nothing where there are none."""
        if len(values):
            self._each(lambda it: it.histogram(step, name, values))

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        """Show an RGB image [H, W, 3]."""
        self._each(lambda it: it.picture(step, name, pixels), self._pictured)

    def pictures_of(self, step: int, name: str, pictures: Iterable[tuple[str, Pixels]]) -> None:
        """Show pictures of an evaluation set, with their names. They are drawn as they are taken: none without a logger."""
        for kind, pixels in pictures if self._pictured else ():
            self.picture(step, f"{_SCORES}/{kind}_of_{name}", pixels)

    def embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], faces: list[Pixels]
    ) -> None:
        """Show embeddings [n, D] with the name and the face of each."""
        self._each(lambda it: it.embeddings(step, vectors, names, faces), self._pictured)

    def outcome(self, settings: Mapping[str, Setting], scores: Mapping[str, Mapping[str, float]]) -> None:
        """Show what came of which settings: the last scores of each set."""
        values = {
            f"{_SCORES}/{name}/{it}": value
            for name, found in scores.items()
            for it, value in _shown(found).items()
        }
        self._each(lambda it: it.outcome(settings, values))

    def _each(self, show: Callable[[Logger], None], loggers: Sequence[Logger] | None = None) -> None:
        for logger in self._loggers if loggers is None else loggers:
            try:
                show(logger)
            except OSError as error:
                self._tell(error)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda it: it.scalars(step, values))


def _shown(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores that are defined, without the ends of their intervals."""
    return {
        name: value
        for name, value in scores.items()
        if not name.endswith(("_low", "_high")) and not math.isnan(value)
    }
