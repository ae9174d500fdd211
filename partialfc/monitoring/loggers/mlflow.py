"""MLflow. The server is by MLFLOW_TRACKING_URI; without it, files beside the run's folder."""

import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.monitoring.loggers.logger import SettingValue, tracker_run_id

_MAX_PARAMS_PER_BATCH = 100  # parameters that it takes


class MLflowLogger:
    """See Logger. A run that goes on is the same run there; it has no histograms and no embeddings.

    folder: that of the run; start: the step that it goes on from. What the server refuses is an OSError, which ends no run.
    """

    is_remote = True

    def __init__(self, folder: Path, start: int) -> None:
        import mlflow

        self._mlflow = mlflow
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if server is None:
            server = (folder.resolve().parent / "mlruns").as_uri()
            os.environ.setdefault(
                "MLFLOW_ALLOW_FILE_STORE", "true"
            )  # which it does not take unasked any more
        with self._convert_errors():
            self._client = mlflow.MlflowClient(server)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "partialfc")
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            own = tracker_run_id(folder, "mlflow", start)
            (found,) = self._client.search_runs([experiment], f"tags.partialfc = '{own}'", max_results=1) or (
                None,
            )
            if found is None:
                found = self._client.create_run(
                    experiment, tags={"partialfc": own}, run_name=folder.resolve().name
                )
            self._run = found.info.run_id

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        now = int(1000 * time.time())
        metrics = [
            self._mlflow.entities.Metric(_sanitize_name(name), float(it), now, step)
            for name, it in values.items()
        ]
        with self._convert_errors():
            self._client.log_batch(self._run, metrics=metrics)

    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        """See Logger: there are none."""

    def log_image(self, step: int, name: str, pixels: ImageArray) -> None:
        """See Logger: an artifact."""
        place, _, name = name.rpartition("/")
        with tempfile.TemporaryDirectory() as folder, self._convert_errors():
            path = Path(folder, f"{name}_{step:08}.png")
            images.write(path, pixels)
            self._client.log_artifact(self._run, str(path), place or None)

    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """See Logger: there are none."""

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """See Logger: the parameters of the run, and recipe.yaml."""
        with self._convert_errors():
            self._client.log_text(self._run, text, "recipe.yaml")
            known = self._client.get_run(self._run).data.params
            new = [
                self._mlflow.entities.Param(key, str(it))
                for key, it in flat_config.items()
                if key not in known
            ]
            for place in range(0, len(new), _MAX_PARAMS_PER_BATCH):
                self._client.log_batch(self._run, params=new[place : place + _MAX_PARAMS_PER_BATCH])

    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        """See Logger: its page compares the last of each metric anyway."""

    def close(self) -> None:
        """See Logger."""
        with self._convert_errors():
            self._client.set_terminated(self._run)

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except self._mlflow.exceptions.MlflowException as error:
            raise OSError(errno.EIO, " ".join(str(error).split())[:200], "MLflow") from error


def _sanitize_name(name: str) -> str:
    """A metric's name in the signs that it takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
