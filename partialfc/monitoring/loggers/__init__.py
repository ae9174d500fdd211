"""Where a run is shown: one module for each kind, behind the same methods."""

from collections.abc import Sequence
from pathlib import Path

from partialfc.errors import InputError
from partialfc.monitoring.loggers.logger import Logger


def create_loggers(names: Sequence[str], folder: Path, start: int) -> list[Logger]:
    """The loggers of the run in `folder`, which goes on from step `start`. InputError where one is not installed,
    or refuses the run; OSError where its server does.
    """
    try:
        return [_create_logger(name, folder, start) for name in dict.fromkeys(names)]
    except ModuleNotFoundError as error:
        raise InputError(
            f"log.loggers: {error.name} is not installed; wanted: pip install {error.name}"
        ) from None


def _create_logger(name: str, folder: Path, start: int) -> Logger:
    # Imported here: each takes a second or more, and one rank of many needs it.
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
