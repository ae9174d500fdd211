"""Grouping of logged values under TensorBoard-style tags, for several loggers.

Loggers sort groups by name.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray
from partialfc.monitoring.loggers.logger import Logger, SettingValue

# TensorBoard group of each metric.
_GROUP_OF_METRIC = {
    "lr": "optim",
    "grad_norm": "optim",
    "epoch": "optim",
    "skipped_steps": "optim",
    "images_per_second": "perf",
    "tflops_per_second": "perf",
    "mfu": "perf",
    "data_wait_fraction": "perf",
    "max_data_wait_seconds": "perf",
    "replaced_images": "perf",
    "epoch_data_wait_seconds": "perf",
    "target_angle": "stats",
    "target_angle_std": "stats",
    "nearest_negative_angle": "stats",
    "num_unseen_classes": "stats",
}
TIME_GROUP, MEMORY_GROUP, SCHEDULE_GROUP = "time_ms", "memory_gib", "schedule"
RANK_TIME_GROUP = "rank_time_ms"  # minimum, median and maximum over the ranks
_EVAL_GROUP = "eval"


class LoggerGroup:
    """Several loggers behind one interface.

    The error of one logger is reported and affects neither the other loggers nor the run.

    Args:
        loggers: Loggers to write to.
        on_error: Called with each error of a logger.
        pictures: `local`: only loggers that keep images on this machine get them; `remote`: all; `off`:
            none.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        on_error: Callable[[OSError], None],
        pictures: Literal["local", "remote", "off"] = "local",
    ) -> None:
        self._loggers, self._on_error = loggers, on_error
        self._image_loggers: Sequence[Logger] = []  # loggers that get images
        if pictures != "off":
            self._image_loggers = [
                logger for logger in loggers if pictures == "remote" or not logger.is_remote
            ]

    def close(self) -> None:
        """Flush and close all loggers."""
        self._for_each_logger(lambda logger: logger.close())

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """Log the recipe, as YAML and as flat keys."""
        self._for_each_logger(lambda logger: logger.log_config(text, flat_config))

    def log_record(self, step: int, record: Mapping[str, float]) -> None:
        """Log each value of a metrics record under its group."""
        values = {
            f"{_GROUP_OF_METRIC[name]}/{name}": value
            for name, value in record.items()
            if name in _GROUP_OF_METRIC
        }
        if "loss" in record:
            values["loss/train"] = record["loss"]
        self._log_scalars(step, values)

    def log_group(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Log values under one group."""
        self._log_scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def log_scores(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Log the scores of an evaluation set, without the bounds of their confidence intervals."""
        self._log_scalars(
            step,
            {f"{_EVAL_GROUP}/{name}/{score}": value for score, value in _without_intervals(values).items()},
        )

    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Log a histogram of finite values; nothing for an empty array."""
        if len(values):
            self._for_each_logger(lambda logger: logger.log_histogram(step, name, values))

    def log_image(self, step: int, name: str, image: ImageArray) -> None:
        """Log an RGB image `[H, W, 3]`."""
        self._for_each_logger(lambda logger: logger.log_image(step, name, image), self._image_loggers)

    def log_figures(self, step: int, name: str, figures: Iterable[tuple[str, ImageArray]]) -> None:
        """Log the figures of an evaluation set. They are rendered lazily: none if no logger takes images."""
        for figure, image in figures if self._image_loggers else ():
            self.log_image(step, f"{_EVAL_GROUP}/{name}/{figure}", image)

    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """Log embeddings `[n, D]` with the name and the image of each."""
        self._for_each_logger(
            lambda logger: logger.log_embeddings(step, vectors, names, images), self._image_loggers
        )

    def log_hparams(
        self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Log the settings with the latest scores of each evaluation set."""
        values = {
            f"{_EVAL_GROUP}/{name}/{score}": value
            for name, set_scores in scores.items()
            for score, value in _without_intervals(set_scores).items()
        }
        self._for_each_logger(lambda logger: logger.log_hparams(flat_config, values))

    def _for_each_logger(
        self, action: Callable[[Logger], None], loggers: Sequence[Logger] | None = None
    ) -> None:
        for logger in self._loggers if loggers is None else loggers:
            try:
                action(logger)
            except OSError as error:
                self._on_error(error)

    def _log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._for_each_logger(lambda logger: logger.log_scalars(step, values))


def _without_intervals(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores that are defined, without the bounds of their confidence intervals."""
    return {
        name: value
        for name, value in scores.items()
        if not name.endswith(("_low", "_high")) and not math.isnan(value)
    }
