"""TensorBoard logger."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from partialfc.data.images import ImageArray
from partialfc.monitoring.loggers.logger import Logger, SettingValue

_EVENTS_PREFIX = "events.out.tfevents."  # then come the time, the host and the process
# Charts of the page "custom scalars".
_CHARTS = {
    "run": {
        "loss": ["Multiline", [r"^loss/"]],
        "accuracy of each evaluation set": ["Multiline", [r"^eval/.+/accuracy$"]],
        "milliseconds per step, by section": ["Multiline", [r"^time_ms/"]],
        "angle to the target and to the nearest other center, degrees": [
            "Multiline",
            [r"^stats/(target|nearest_negative)_angle$"],
        ],
        "memory per rank, GiB": ["Multiline", [r"^memory_gib/"]],
        "fraction of the time waiting for data": ["Multiline", [r"^perf/data_wait_fraction$"]],
    }
}


class TensorBoardLogger(Logger):
    """TensorBoard logger. It writes in its own thread, so that a step never waits for a disk.

    Args:
        folder: Folder of the event files.
        start: Step that the run resumes from; later events of an earlier part of the run are hidden. 0 for a
            new run, which hides all.
    """

    is_remote = False

    def __init__(self, folder: Path, start: int) -> None:
        _silence_writer_thread()
        _rename_later_files(folder)
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else 0)
        self._writer.add_custom_scalars(_CHARTS)

    @override
    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    @override
    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        self._writer.add_histogram(name, values, step)

    @override
    def log_image(self, step: int, name: str, image: ImageArray) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    @override
    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        sprites = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        self._writer.add_embedding(vectors, names, sprites, step, "identities")

    @override
    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown code block
        self._writer.add_text("recipe", indented)

    @override
    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        # SummaryWriter.add_hparams would create a separate run. torch's annotation of the writer is wrong.
        writer: Any = self._writer.file_writer
        for summary in hparams(dict(flat_config), dict.fromkeys(scores, 0.0)):
            writer.add_summary(summary)
        self._writer.flush()

    @override
    def close(self) -> None:
        self._writer.close()


def _rename_later_files(folder: Path) -> None:
    """Rename the event files of a clock that was ahead of the present one.

    TensorBoard reads event files in the order of their names, which contain the time. Each of these files gets its
    place in that order instead, which is less than any time.
    """
    files = sorted(folder.glob(f"{_EVENTS_PREFIX}*")) if folder.exists() else []
    times = [path.name.removeprefix(_EVENTS_PREFIX).split(".")[0] for path in files]
    if all(it.isdecimal() and int(it) < int(time.time()) for it in times):
        return
    for place, path in enumerate(files):
        origin = path.name.removeprefix(_EVENTS_PREFIX).partition(".")[2]
        path.rename(path.with_name(f"{_EVENTS_PREFIX}{place:010d}.{origin}"))


def _silence_writer_thread() -> None:
    """Suppress the traceback of the writer thread if a disk is full; its next call raises the same error."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        of_writer = type(arguments.thread).__name__ == "_AsyncWriterThread"
        if not (of_writer and issubclass(arguments.exc_type, OSError)):
            before(arguments)

    threading.excepthook = hook
