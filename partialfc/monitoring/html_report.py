"""Self-contained HTML report of one or more runs: curves, scores, figures, settings, section times."""

import base64
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from partialfc import recipe
from partialfc.config import Config
from partialfc.config.provenance import flatten_config
from partialfc.conversion import convert
from partialfc.evaluation.metrics import format_scores
from partialfc.input_files import read_file
from partialfc.monitoring.plots import plot_runs
from partialfc.runtime.files import SUMMARY_FILE, atomic_write, decode_json
from partialfc.runtime.metrics_records import MetricsRecord, read_metrics

_TEMPLATE = Path(__file__).with_name("page.html")
_TITLES = {"roc": "ROC", "hardest_pairs": "hardest pairs"}
_COLORS = ("#2f6fde", "#e07a3f", "#3c9d6b", "#8d63c9", "#c24d6e", "#6b7a8f")  # one per section of a step
_NUM_RECENT_RECORDS = 10  # newest step records that are averaged


def write_html_report(runs: Sequence[Path], path: Path) -> None:
    """Write the report of these run folders to `path`.

    Raises:
        FileNotFoundError: If a folder contains no metrics.jsonl.
        InputError: If a file of a run is damaged.
    """
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            below = sorted(it.parent for it in run.glob("*/metrics.jsonl"))
            hint = f"; it contains runs: {' '.join(map(str, below[:5]))}" if below else ""
            raise FileNotFoundError(f"{run}: expected the folder of a run, with metrics.jsonl{hint}")
    names = _run_names(runs)
    records = [read_metrics(run / "metrics.jsonl") for run in runs]
    scores = [row for name, found in zip(names, records, strict=True) for row in _score_rows(name, found)]
    content = {
        "title": names[0] if len(runs) == 1 else f"{len(runs)} runs",
        "made": f"Created by partialfc report on {time.strftime('%F')} from {', '.join(map(str, runs))}.",
        "curves": _curves_image(runs),
        "scores": scores,
        "score_names": list(dict.fromkeys(it for row in scores for it in row["cells"])),
        "figures": [figures for figures in map(_figures, names, runs) if figures["sets"]],
        "times": [bars for bars in map(_time_bars, names, records) if bars["parts"]],
        "settings_of": names if len(runs) > 1 else ["value"],
        "settings": _settings_rows(runs),
        "environments": [
            {"name": name, "words": _environment_text(run)} for name, run in zip(names, runs, strict=True)
        ],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(content)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _run_names(runs: Sequence[Path]) -> list[str]:
    """Return the names of the folders, or their paths if two names are equal."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _curves_image(runs: Sequence[Path]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "curves.png")
        plot_runs([run / "metrics.jsonl" for run in runs], picture)
        return _data_uri(picture.read_bytes())


def _score_rows(name: str, lines: list[MetricsRecord]) -> list[dict[str, Any]]:
    """Return one row per evaluation set, from the latest evaluation."""
    found = [it for it in lines if it.get("verification")]
    if not found:
        return []
    newest = found[-1]
    return [
        {"run": name, "set": one, "step": newest["step"], "cells": format_scores(values)}
        for one, values in newest["verification"].items()
    ]


def _figures(name: str, run: Path) -> dict[str, Any]:
    """Return the latest figures of each evaluation set, read from the TensorBoard files."""
    # Imported late: it takes about a second.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not (run / "tensorboard").is_dir():
        return {"name": name, "sets": []}
    board = EventAccumulator(str(run / "tensorboard"), {"images": 1, "scalars": 1, "histograms": 1})
    board.Reload()
    by_set: dict[str, list[dict[str, str]]] = {}
    for tag in sorted(board.Tags()["images"], reverse=True):
        set_name, _, kind = tag.removeprefix("eval/").rpartition("/")
        if tag.startswith("eval/") and set_name:
            image = board.Images(tag)[-1].encoded_image_string
            figure = {"title": _TITLES.get(kind, kind), "source": _data_uri(image)}
            by_set.setdefault(set_name, []).append(figure)
    return {
        "name": name,
        "sets": [{"name": set_name, "figures": figures} for set_name, figures in sorted(by_set.items())],
    }


def _time_bars(name: str, lines: list[MetricsRecord]) -> dict[str, Any]:
    """Return the mean time_ms per section of a step, over the latest records."""
    recent = [it for it in lines if "time_ms" in it][-_NUM_RECENT_RECORDS:]
    if not recent:
        return {"name": name, "parts": []}
    parts_of = [it["time_ms"] for it in recent]
    means = {part: sum(it.get(part, 0.0) for it in parts_of) / len(recent) for part in parts_of[-1]}
    whole = sum(means.values()) or 1.0
    speed = sum(it.get("images_per_second", 0.0) for it in recent) / len(recent)
    parts = [
        {"name": part, "time_ms": f"{mean:.1f}", "percent": f"{100 * mean / whole:.2f}", "color": color}
        for (part, mean), color in zip(means.items(), _COLORS * 2, strict=False)
    ]
    return {"name": name, "words": f"{whole:.1f} ms per step, {speed:.0f} images/s", "parts": parts}


def _settings_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the settings that differ between the runs, or all settings of a single run."""
    resolved = [_load_config(run) for run in runs]
    every = dict.fromkeys(key for settings in resolved for key in settings)
    kept = [key for key in every if len(runs) == 1 or len({str(it.get(key)) for it in resolved}) > 1]
    return [{"key": key, "cells": [it.get(key, "") for it in resolved]} for key in kept]


def _load_config(run: Path) -> dict[str, Any]:
    path = run / "recipe.yaml"
    tree = recipe.parse(read_file(path).decode(errors="replace"), f"{path}: expected the recipe of a run")
    return dict(flatten_config(convert(tree, Config, str(path))))


class _Summary(msgspec.Struct):
    environment: dict[str, str] = {}


def _environment_text(run: Path) -> str:
    """Return the environment from the run's summary, or the first line of its log if it has not finished."""
    summary = run / SUMMARY_FILE
    if summary.exists():
        known = decode_json(
            read_file(summary), _Summary, f"{summary}: expected the summary of a run"
        ).environment
        if known:
            return ", ".join(f"{name} {version}" for name, version in known.items())
    log = run / "log.txt"
    return read_file(log).decode(errors="replace").partition("\n")[0] if log.exists() else ""
