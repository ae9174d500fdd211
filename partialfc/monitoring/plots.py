"""Plots of the metrics of runs."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from partialfc.errors import InputError
from partialfc.evaluation.sets import primary_score
from partialfc.runtime.files import atomic_write
from partialfc.runtime.metrics_records import MetricsRecord, read_metrics


def plot_runs(runs: Sequence[Path], out: Path) -> None:
    """Plot loss, learning rate and the primary score of every evaluation set over the steps, as a PNG.

    Args:
        runs: metrics.jsonl files.
        out: PNG file to write.

    Raises:
        FileNotFoundError: If a file does not exist.
        InputError: If a file contains no metrics of a run.
    """
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    loss, lr, score_axes = figure.subplots(1, 3)
    loss.set_title("loss")
    lr.set_title("learning rate")
    score_axes.set_title("evaluation, %")
    for path in runs:
        lines, run = read_metrics(path), f"{path.parent.name} " if len(runs) > 1 else ""
        reports = [line for line in lines if "loss" in line]
        scores = [line for line in lines if "verification" in line]
        for axes, name in ((loss, "loss"), (lr, "lr")):
            axes.plot([line["step"] for line in reports], [line[name] for line in reports], label=run)
        for name in sorted({name for line in scores for name in line["verification"]}):
            _plot_primary_score(
                score_axes, run, name, [line for line in scores if name in line["verification"]]
            )
    if len(runs) > 1:
        loss.legend()
    _save(figure, out)


def plot_loss_differences(runs: list[Path], out: Path) -> dict[str, float]:
    """Plot the losses of several runs and their relative differences from the first run, as a PNG.

    Returns:
        Largest relative difference of each run, by the name of its folder.

    Raises:
        InputError: If the runs report different steps.
    """
    curves = {
        path.parent.name: {line["step"]: line["loss"] for line in read_metrics(path) if "loss" in line}
        for path in runs
    }
    first = next(iter(curves.values()))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, differences = figure.subplots(1, 2)
    largest = {}
    for place, (name, curve) in enumerate(curves.items()):
        if curve.keys() != first.keys():
            raise InputError(
                f"{name}: reports {len(curve)} steps, expected the {len(first)} of {next(iter(curves))}"
            )
        width = 1.5 * (len(curves) - place)  # later curves are thinner, so that earlier ones stay visible
        losses.plot(list(curve), list(curve.values()), linewidth=width, label=name)
        apart = [abs(loss - first[step]) / abs(first[step]) for step, loss in curve.items()]
        differences.semilogy(list(curve), [max(one, 1e-9) for one in apart], marker=".", label=name)
        largest[name] = max(apart)
    losses.set_title("loss")
    differences.set_title(f"relative difference from {next(iter(curves))} (0 drawn as 1e-9)")
    losses.legend()
    differences.legend()
    _save(figure, out)
    return largest


def _plot_primary_score(axes: Axes, run: str, name: str, lines: list[MetricsRecord]) -> None:
    watched = [primary_score(line["verification"][name]) for line in lines]
    values = [100 * value for _, value in watched]
    label = f"{run}{name}, {watched[-1][0]}: {'-' if math.isnan(values[-1]) else f'{values[-1]:.1f}'}"
    axes.plot([line["step"] for line in lines], values, marker="o", label=label)
    axes.legend()


def _save(figure: Figure, picture: Path) -> None:
    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(picture) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
