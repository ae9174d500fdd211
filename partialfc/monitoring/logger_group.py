"""What is shown of a run: which number stands in which group, histograms, pictures.

Groups are shown in the order of their names: `loss` and `verification` come first, then the run's workings.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray
from partialfc.monitoring.loggers.logger import Logger, SettingValue

# Of a line of numbers: the group that each stands in.
_GROUP_OF_METRIC = {
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
TIME_GROUP, MEMORY_GROUP, SCHEDULE_GROUP = "workings_time", "workings_memory", "workings_settings"
_EVAL_GROUP = "verification"


class LoggerGroup:
    """Puts what a run says into groups, for all its loggers. What one of them cannot write is told, and stops neither the
    others nor the run.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        on_error: Callable[[OSError], None],
        pictures: Literal["local", "remote", "off"] = "local",
    ) -> None:
        self._loggers, self._tell = loggers, on_error
        self._pictured: Sequence[Logger] = []  # those that get pictures
        if pictures != "off":
            self._pictured = [it for it in loggers if pictures == "remote" or not it.is_remote]

    def close(self) -> None:
        """Bring everything to where it is kept."""
        self._for_each_logger(lambda it: it.close())

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """Show the run's recipe, in YAML and by its keys."""
        self._for_each_logger(lambda it: it.log_config(text, flat_config))

    def log_record(self, step: int, record: Mapping[str, float]) -> None:
        """Show each number of a line in its group."""
        known = {
            f"{_GROUP_OF_METRIC[name]}/{name}": value
            for name, value in record.items()
            if name in _GROUP_OF_METRIC
        }
        self._scalars(step, known)

    def log_group(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Show the numbers of one group."""
        self._scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def log_scores(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Show the scores of an evaluation set, without the ends of their intervals."""
        self._scalars(
            step, {f"{_EVAL_GROUP}/{name}/{it}": value for it, value in _without_intervals(values).items()}
        )

    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Show the distribution of finite values; nothing where there are none."""
        if len(values):
            self._for_each_logger(lambda it: it.log_histogram(step, name, values))

    def log_image(self, step: int, name: str, image: ImageArray) -> None:
        """Show an RGB image [H, W, 3]."""
        self._for_each_logger(lambda it: it.log_image(step, name, image), self._pictured)

    def log_figures(self, step: int, name: str, figures: Iterable[tuple[str, ImageArray]]) -> None:
        """Show pictures of an evaluation set, with their names. They are drawn as they are taken: none without a logger."""
        for kind, pixels in figures if self._pictured else ():
            self.log_image(step, f"{_EVAL_GROUP}/{kind}_of_{name}", pixels)

    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """Show embeddings [n, D] with the name and the face of each."""
        self._for_each_logger(lambda it: it.log_embeddings(step, vectors, names, images), self._pictured)

    def log_hparams(
        self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Show what came of which settings: the last scores of each set."""
        values = {
            f"{_EVAL_GROUP}/{name}/{it}": value
            for name, found in scores.items()
            for it, value in _without_intervals(found).items()
        }
        self._for_each_logger(lambda it: it.log_hparams(flat_config, values))

    def _for_each_logger(
        self, action: Callable[[Logger], None], loggers: Sequence[Logger] | None = None
    ) -> None:
        for logger in self._loggers if loggers is None else loggers:
            try:
                action(logger)
            except OSError as error:
                self._tell(error)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._for_each_logger(lambda it: it.log_scalars(step, values))


def _without_intervals(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores that are defined, without the ends of their intervals."""
    return {
        name: value
        for name, value in scores.items()
        if not name.endswith(("_low", "_high")) and not math.isnan(value)
    }
