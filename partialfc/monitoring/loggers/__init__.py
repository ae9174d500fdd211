"""Where a run is shown: one module for each kind, behind the same methods."""

from pathlib import Path

from partialfc.monitoring.loggers.logger import Logger


def opened(folder: Path, start: int) -> Logger:
    """The loggers of the run in `folder`, which goes on from step `start`."""
    from partialfc.monitoring.loggers.tensorboard import (
        TensorBoard,  # here: it takes a second, on one rank of many
    )

    return TensorBoard(folder / "tensorboard", start)
