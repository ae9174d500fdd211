"""Diagnostics of one step: angles to the class centers, random margins, peak memory of each rank."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from partialfc.head import Observation
from partialfc.monitoring.logger_group import MEMORY_GROUP, LoggerGroup


@dataclass(frozen=True)
class StepDiagnostics:
    """Diagnostics of one step: tensors on the device, equal on all ranks."""

    step: int  # number of completed steps, this one included
    head: Observation
    memory: Tensor  # `[W]` bytes: peak memory of each rank so far


def log_diagnostics(diagnostics: StepDiagnostics, loggers: LoggerGroup) -> dict[str, Any]:
    """Log the diagnostics and return their record: angles in degrees, memory in bytes.

    Synchronizes with the device. `target_angle` and `target_angle_std` describe the angles between the
    embeddings and their class centers. ElasticFace (arXiv:2109.09416) compares losses by them.
    `nearest_negative_angle` is the mean angle to the nearest other active center.

    Returns:
        Record for metrics.jsonl.
    """
    target, nearest = _finite_values(diagnostics.head.target), _finite_values(diagnostics.head.nearest)
    loggers.log_histogram(diagnostics.step, "stats/target_cosine", target)
    loggers.log_histogram(diagnostics.step, "stats/nearest_negative_cosine", nearest)
    if diagnostics.head.margins is not None:
        loggers.log_histogram(
            diagnostics.step, "stats/random_margin", _finite_values(diagnostics.head.margins)
        )
    memory: list[float] = diagnostics.memory.tolist()
    loggers.log_group(
        diagnostics.step,
        MEMORY_GROUP,
        {f"rank_{rank}": num_bytes / 2**30 for rank, num_bytes in enumerate(memory)},
    )
    record: dict[str, Any] = {}
    if len(target):
        record |= {"target_angle": _to_degrees(target).mean(), "target_angle_std": _to_degrees(target).std()}
    if len(nearest):
        record["nearest_negative_angle"] = _to_degrees(nearest).mean()
    record = {name: float(value) for name, value in record.items()} | {
        "num_unseen_classes": int(diagnostics.head.never_positive.sum())
    }
    loggers.log_record(diagnostics.step, record)
    return {"step": diagnostics.step, **record, "memory_bytes": [int(num_bytes) for num_bytes in memory]}


def _finite_values(values: Tensor) -> NDArray[np.float64]:
    array = values.double().cpu().numpy()
    return array[np.isfinite(array)]


def _to_degrees(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
