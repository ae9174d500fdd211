"""Weights & Biases logger.

Its environment variables select project, server and mode (WANDB_MODE=offline without a network).
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.monitoring.loggers.logger import Logger, SettingValue, tracker_run_id

_STEP = "step"


class WandbLogger(Logger):
    """Weights & Biases logger. A resumed run continues its W&B run.

    Args:
        folder: Folder of the run, where W&B keeps its files.
        start: Step that the run resumes from.

    Raises:
        InputError: If W&B rejects the run, for example without an API key.
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
                f"log.loggers: wandb: {why}; run wandb login, or set WANDB_MODE=offline"
            ) from None
        # W&B's own step only increases, but a resumed run may start before the last logged step.
        self._run.define_metric("*", step_metric=_STEP)

    @override
    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({_STEP: step, **values})

    @override
    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        self._run.log({_STEP: step, name: self._wandb.Histogram(values.tolist())})

    @override
    def log_image(self, step: int, name: str, image: ImageArray) -> None:
        self._run.log({_STEP: step, name: self._wandb.Image(image)})

    @override
    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        columns: list[str | int] = ["identity", *(f"component {place}" for place in range(vectors.shape[1]))]
        rows = [[name, *vector.tolist()] for name, vector in zip(names, vectors, strict=True)]
        self._run.log({_STEP: step, "identities": self._wandb.Table(columns=columns, data=rows)})

    @override
    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        self._run.config.update(dict(flat_config), allow_val_change=True)

    @override
    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        self._run.summary.update(dict(scores))

    @override
    def close(self) -> None:
        self._run.finish()
