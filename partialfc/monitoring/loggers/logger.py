"""Interface of all loggers."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray
from partialfc.runtime.files import atomic_write

SettingValue = str | int | float | bool


class Logger(Protocol):
    """Logger of the values and images of one run. Names have parts separated by `/`; the first is a group."""

    is_remote: bool  # whether data may leave this machine

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log values after `step` steps."""

    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Log a histogram of finite values, at least one."""

    def log_image(self, step: int, name: str, image: ImageArray) -> None:
        """Log an RGB image `[H, W, 3]`."""

    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """Log embeddings `[n, D]` with the name and the image `[H, H, 3]` of each, if the logger supports it."""

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """Log the recipe, as YAML and as flat keys."""

    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        """Log the settings together with the final scores."""

    def close(self) -> None:
        """Flush and close the logger."""


def tracker_run_id(folder: Path, tracker: str, start: int) -> str:
    """Return the id of the run in a tracker, from a file in `folder` that is created by new runs.

    Args:
        folder: Folder of the run.
        tracker: Name of the tracker.
        start: Step that the run resumes from; 0 creates a new id.
    """
    path = folder / f"{tracker}_run"
    if start == 0 or not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:16])
    return path.read_text().strip()
