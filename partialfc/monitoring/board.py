"""What TensorBoard shows of a run: which number stands in which group, histograms, pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Of a line of numbers: the group that each stands in.
_GROUPS = {
    "loss": "train",
    "rate": "train",
    "gradient_norm": "train",
    "epoch": "train",
    "skipped": "train",
    "images_per_second": "speed",
    "data_wait": "data",
    "longest_data_wait": "data",
    "replaced": "data",
    "epoch_data_wait": "data",
    "target_angle": "angle",
    "target_angle_std": "angle",
    "nearest_angle": "angle",
    "never_positive": "classes",
}
# On the page "custom scalars": curves that belong together, in one chart.
_CHARTS = {
    "run": {
        "milliseconds a step": ["Multiline", [r"^time/"]],
        "degrees to the own and to the nearest other centre": [
            "Multiline",
            [r"^angle/(target|nearest)_angle$"],
        ],
        "GiB of each rank": ["Multiline", [r"^memory/"]],
        "scores that are watched, and their best": [
            "Multiline",
            [r"^verification/.+/accuracy$", r".+_best$"],
        ],
    }
}


class Board:
    """Writes through a thread of its own, so that a step does not wait for a disk.

    start: the step that the run goes on from; what an earlier part of it wrote of later ones is hidden.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # Imported here: it takes a second, and one rank of many needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)
        self._writer.add_custom_scalars(_CHARTS)

    def close(self) -> None:
        """Bring everything to the disk."""
        self._writer.close()

    def numbers(self, step: int, line: Mapping[str, float]) -> None:
        """Show each number in its group."""
        for name, value in line.items():
            if name in _GROUPS:
                self._writer.add_scalar(f"{_GROUPS[name]}/{name}", value, step)

    def group(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Show the numbers of one group."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def scores(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Show the scores of an evaluation set, without the ends of their intervals."""
        shown = {it: value for it, value in values.items() if not it.endswith(("_low", "_high"))}
        self.group(step, "verification", {f"{name}/{it}": value for it, value in shown.items()})

    def histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """Show the distribution of finite values; nothing where there are none."""
        if len(values):
            self._writer.add_histogram(name, values, step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show an RGB image [H, W, 3]."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")
