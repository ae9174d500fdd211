"""A closer look at one step: how compact the classes are, what the margin worked with, what each rank has taken."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from partialfc.head import Observation
from partialfc.monitoring.logger_group import MEMORY_GROUP, LoggerGroup


@dataclass(frozen=True)
class StepDiagnostics:
    """Tensors on the device, the same on every rank."""

    step: int  # the number of steps with this one
    head: Observation
    memory: Tensor  # [W] bytes, the most that each rank has taken so far


def log_diagnostics(diagnostics: StepDiagnostics, loggers: LoggerGroup) -> dict[str, Any]:
    """Put it on the board, and return a line of numbers: angles in degrees, memory in bytes. Waits for the device.

    target_angle and target_angle_std: between the images and their own classes' centres, how compact the classes are
    (ElasticFace, arXiv 2109.09416, compares losses by it); nearest_angle: to the nearest other active centre.
    """
    target, nearest = _finite_values(diagnostics.head.target), _finite_values(diagnostics.head.nearest)
    loggers.log_histogram(diagnostics.step, "workings_cosine/target", target)
    loggers.log_histogram(diagnostics.step, "workings_cosine/nearest_negative", nearest)
    if diagnostics.head.margins is not None:
        loggers.log_histogram(
            diagnostics.step, "workings_margin/drawn", _finite_values(diagnostics.head.margins)
        )
    memory: list[float] = diagnostics.memory.tolist()
    loggers.log_group(
        diagnostics.step, MEMORY_GROUP, {f"rank_{rank}": taken / 2**30 for rank, taken in enumerate(memory)}
    )
    line: dict[str, Any] = {}
    if len(target):
        line |= {"target_angle": _to_degrees(target).mean(), "target_angle_std": _to_degrees(target).std()}
    if len(nearest):
        line["nearest_angle"] = _to_degrees(nearest).mean()
    line = {name: float(value) for name, value in line.items()} | {
        "never_positive": int(diagnostics.head.never_positive.sum())
    }
    loggers.log_record(diagnostics.step, line)
    return {"step": diagnostics.step, **line, "memory": [int(taken) for taken in memory]}


def _finite_values(values: Tensor) -> NDArray[np.float64]:
    known = values.double().cpu().numpy()
    return known[np.isfinite(known)]


def _to_degrees(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
