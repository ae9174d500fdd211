"""What everything that shows a run can do."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import Pixels

Setting = str | int | float | bool


class Logger(Protocol):
    """Shows the numbers and pictures of one run. Names have parts, divided by `/`, of which the first is a group."""

    is_remote: bool  # whether what it shows may leave this machine

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers after step `step`."""

    def histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Show the distribution of finite values, at least one."""

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        """Show an RGB image [H, W, 3]."""

    def embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], faces: list[Pixels]
    ) -> None:
        """Show embeddings [n, D] with the name and the face [H, H, 3] of each, where such can be shown."""

    def recipe(self, text: str, settings: Mapping[str, Setting]) -> None:
        """Show the run's recipe, in YAML and by its keys."""

    def outcome(self, settings: Mapping[str, Setting], scores: Mapping[str, float]) -> None:
        """Show what came of which settings, at the end."""

    def close(self) -> None:
        """Bring everything to where it is kept."""


def identity_of(folder: Path, kind: str, start: int) -> str:
    """Which run of a tracker's the run in `folder` is, which goes on from step `start`: drawn where it begins, kept in a
    file of that kind.
    """
    path = folder / f"{kind}_run"
    if start == 0 or not path.exists():
        path.write_text(uuid.uuid4().hex[:16])
    return path.read_text().strip()
