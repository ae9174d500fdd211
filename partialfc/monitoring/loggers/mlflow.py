"""MLflow logger.

MLFLOW_TRACKING_URI selects the server. Without it, MLflow writes files next to the run's folder.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.monitoring.loggers.logger import Logger, SettingValue, tracker_run_id

_MAX_PARAMS_PER_BATCH = 100  # limit of the MLflow server


class MLflowLogger(Logger):
    """MLflow logger without histograms and embeddings. A resumed run continues its MLflow run.

    Errors of the server are raised as OSError and do not end the run.

    Args:
        folder: Folder of the run.
        start: Step that the run resumes from.
    """

    is_remote = True

    def __init__(self, folder: Path, start: int) -> None:
        import mlflow

        self._mlflow = mlflow
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if server is None:
            server = (folder.resolve().parent / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # required by recent versions for files
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

    @override
    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [
            self._mlflow.entities.Metric(_sanitize_name(name), float(it), now, step)
            for name, it in values.items()
        ]
        with self._convert_errors():
            self._client.log_batch(self._run, metrics=metrics)

    @override
    def log_histogram(self, step: int, name: str, values: NDArray[np.floating]) -> None:
        pass

    @override
    def log_image(self, step: int, name: str, image: ImageArray) -> None:
        place, _, name = name.rpartition("/")
        with tempfile.TemporaryDirectory() as folder, self._convert_errors():
            path = Path(folder, f"{name}_{step:08}.png")
            images.write(path, image)
            self._client.log_artifact(self._run, str(path), place or None)

    @override
    def log_embeddings(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        pass

    @override
    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
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

    @override
    def log_hparams(self, flat_config: Mapping[str, SettingValue], scores: Mapping[str, float]) -> None:
        pass

    @override
    def close(self) -> None:
        with self._convert_errors():
            self._client.set_terminated(self._run)

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except self._mlflow.exceptions.MlflowException as error:
            raise OSError(f"MLflow: {' '.join(str(error).split())[:200]}") from error


def _sanitize_name(name: str) -> str:
    """Replace the characters that MLflow does not allow in the name of a metric."""
    return re.sub(r"[^\w\-. :/]", "_", name)
