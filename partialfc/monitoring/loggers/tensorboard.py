"""TensorBoard."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from partialfc.data.images import ImageArray
from partialfc.monitoring.loggers.logger import SettingValue

# On the page "custom scalars": curves that belong together, in one chart.
_CHARTS = {
    "run": {
        "loss": ["Multiline", [r"^loss/"]],
        "accuracy of each verification set": ["Multiline", [r"^verification/.+/accuracy$"]],
        "milliseconds of a step, by what takes them": ["Multiline", [r"^workings_time/"]],
        "degrees to the own and to the nearest other centre": [
            "Multiline",
            [r"^workings_angle/(target|nearest)_angle$"],
        ],
        "GiB of each rank": ["Multiline", [r"^workings_memory/"]],
        "share of the time that waits for data": ["Multiline", [r"^workings_data/data_wait$"]],
    }
}


class TensorBoardLogger:
    """See Logger. Writes through a thread of its own, so that a step does not wait for a disk.

    start: the step that the run goes on from; what an earlier part of it wrote of later ones is hidden.
    """

    is_remote = False

    def __init__(self, folder: Path, start: int) -> None:
        _silence_writer_thread()
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)
        self._writer.add_custom_scalars(_CHARTS)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """See Logger."""
        self._writer.add_histogram(name, values, step)

    def log_image(self, step: int, name: str, pixels: ImageArray) -> None:
        """See Logger."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """See Logger: the page "projector", with a sprite of each face."""
        sprites = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        self._writer.add_embedding(vectors, names, sprites, step, "identities")

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """See Logger: the page "text"."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown's block of code
        self._writer.add_text("recipe", indented)

    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        """See Logger: the page "hparams"."""
        # SummaryWriter.add_hparams would make a run of its own. Of the type that torch declares it never is.
        writer: Any = self._writer.file_writer
        for summary in hparams(dict(flat_config), dict.fromkeys(scores, 0.0)):
            writer.add_summary(summary)
        self._writer.flush()

    def close(self) -> None:
        """See Logger."""
        self._writer.close()


def _silence_writer_thread() -> None:
    """Where a disk is full, the writer's thread ends with a traceback; its next call raises the same error, which is told."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        of_writer = type(arguments.thread).__name__ == "_AsyncWriterThread"
        if not (of_writer and issubclass(arguments.exc_type, OSError)):
            before(arguments)

    threading.excepthook = hook
