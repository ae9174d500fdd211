"""Pictures of a run, drawn from its metrics.jsonl."""

from pathlib import Path
from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from partialfc.runtime.files import published

Line = dict[str, Any]


def draw_run(metrics: Path, picture: Path) -> None:
    """Loss, learning rate and the accuracy of every verification set over the steps, as a PNG."""
    lines: list[Line] = [msgspec.json.decode(line) for line in metrics.read_bytes().splitlines()]
    reports = [line for line in lines if "loss" in line]
    scores = [line for line in lines if "verification" in line]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, accuracy = figure.subplots(1, 3)
    for axes, name in ((loss, "loss"), (rate, "rate")):
        axes.plot([line["step"] for line in reports], [line[name] for line in reports])
        axes.set_title("learning rate" if name == "rate" else name)
    for name in sorted({name for line in scores for name in line["verification"]}):
        _draw_accuracy(accuracy, name, [line for line in scores if name in line["verification"]])
    accuracy.set_title("10-fold accuracy, %")
    for axes in (loss, rate, accuracy):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with published(picture) as draft:
        figure.savefig(draft, format="png", dpi=100)


def _draw_accuracy(axes: Axes, name: str, lines: list[Line]) -> None:
    values = [100 * line["verification"][name]["accuracy"] for line in lines]
    axes.plot([line["step"] for line in lines], values, marker="o", label=f"{name}: {values[-1]:.1f}")
    axes.legend()
