"""Loggers of a run, one module for each kind."""

from collections.abc import Sequence
from pathlib import Path

from partialfc.errors import InputError
from partialfc.monitoring.loggers.logger import Logger


def create_loggers(names: Sequence[str], folder: Path, start: int) -> list[Logger]:
    """Create the loggers of a run.

    Args:
        names: Names of the loggers.
        folder: Folder of the run.
        start: Step that the run resumes from.

    Returns:
        The loggers.

    Raises:
        InputError: If a logger is not installed or rejects the run.
        OSError: If a server of a logger rejects the run.
    """
    try:
        return [_create_logger(name, folder, start) for name in dict.fromkeys(names)]
    except ModuleNotFoundError as error:
        raise InputError(
            f"log.loggers: {error.name} is not installed; install it with: pip install {error.name}"
        ) from None


def _create_logger(name: str, folder: Path, start: int) -> Logger:
    # Imported here: each takes a second or more, and only rank 0 needs it.
    match name:
        case "wandb":
            from partialfc.monitoring.loggers.wandb import WandbLogger

            return WandbLogger(folder, start)
        case "mlflow":
            from partialfc.monitoring.loggers.mlflow import MLflowLogger

            return MLflowLogger(folder, start)
        case _:
            from partialfc.monitoring.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger(folder / "tensorboard", start)
