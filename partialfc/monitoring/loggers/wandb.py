"""Weights & Biases. Project, server and WANDB_MODE (offline, where there is no network) are by its own environment."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.monitoring.loggers.logger import SettingValue, tracker_run_id

_STEP = "step"


class WandbLogger:
    """See Logger. A run that goes on is the same run there.

    folder: that of the run, in which its own files are kept; start: the step that it goes on from. InputError where wandb
    refuses, as without a key.
    """

    is_remote = True

    def __init__(self, folder: Path, start: int) -> None:
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "partialfc"),
                name=folder.resolve().name,
                id=tracker_run_id(folder, "wandb", start),
                resume="allow",
                dir=str(folder),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            why = " ".join(str(error).split())
            raise InputError(
                f"log.loggers: wandb: {why}; wanted wandb login, or WANDB_MODE=offline"
            ) from None
        # Its own count of steps only rises: a run that goes on from a checkpoint may begin before the last one.
        self._run.define_metric("*", step_metric=_STEP)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        self._run.log({_STEP: step, **values})

    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """See Logger."""
        self._run.log({_STEP: step, name: self._wandb.Histogram(values.tolist())})

    def log_image(self, step: int, name: str, pixels: ImageArray) -> None:
        """See Logger."""
        self._run.log({_STEP: step, name: self._wandb.Image(pixels)})

    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """See Logger: a table, of which its page makes a projection."""
        columns: list[str | int] = ["identity", *(f"component {place}" for place in range(vectors.shape[1]))]
        rows = [[name, *vector.tolist()] for name, vector in zip(names, vectors, strict=True)]
        self._run.log({_STEP: step, "identities": self._wandb.Table(columns=columns, data=rows)})

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """See Logger: the run's config."""
        self._run.config.update(dict(flat_config), allow_val_change=True)

    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        """See Logger: the run's summary."""
        self._run.summary.update(dict(scores))

    def close(self) -> None:
        """See Logger."""
        self._run.finish()
