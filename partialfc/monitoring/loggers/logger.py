"""What everything that shows a run can do."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray

SettingValue = str | int | float | bool


class Logger(Protocol):
    """Shows the numbers and pictures of one run. Names have parts, divided by `/`, of which the first is a group."""

    is_remote: bool  # whether what it shows may leave this machine

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers after step `step`."""

    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Show the distribution of finite values, at least one."""

    def log_image(self, step: int, name: str, image: ImageArray) -> None:
        """Show an RGB image [H, W, 3]."""

    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """Show embeddings [n, D] with the name and the face [H, H, 3] of each, where such can be shown."""

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """Show the run's recipe, in YAML and by its keys."""

    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        """Show what came of which settings, at the end."""

    def close(self) -> None:
        """Bring everything to where it is kept."""


def tracker_run_id(folder: Path, tracker: str, start: int) -> str:
    """Which run of a tracker's the run in `folder` is, which goes on from step `start`: drawn where it begins, kept in a
    file of that kind.
    """
    path = folder / f"{tracker}_run"
    if start == 0 or not path.exists():
        path.write_text(uuid.uuid4().hex[:16])
    return path.read_text().strip()
