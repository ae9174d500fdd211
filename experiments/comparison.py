"""Functions of experiments over seeds: runs on one core each, and tables.

Finished runs are not repeated. Differences are paired by seed with the first case; their 95 % intervals are
bootstrapped over the seeds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_DRAWS = 10_000  # bootstrap samples

ScoreRow = dict[str, Any]  # case, seed, set, accuracy, auc


def train_and_score(
    output: Path, case: str, settings: Sequence[str], seed: int, recipe: str = "faces_tiny"
) -> list[ScoreRow]:
    """Return a row for each verification set of a run, which is trained unless it has finished."""
    train_once(output, settings, seed, recipe)
    summary = json.loads((output / "summary.json").read_text())
    return [
        {"case": case, "seed": seed, "set": name, "accuracy": scores["accuracy"], "auc": scores["auc"]}
        for name, scores in summary["verification"].items()
    ]


def train_once(output: Path, settings: Sequence[str], seed: int, recipe: str) -> None:
    """Train a recipe unless it has finished."""
    if not (output / "summary.json").exists():
        own = (f"output={output}", f"seed={seed}", "--ranks", 1)
        run_module("partialfc", "train", recipe, *settings, *own)


def run_folder(out: Path, case: str, seed: int) -> Path:
    """Return the folder of a run."""
    return out / case.replace(", ", "_").replace(" ", "_") / str(seed)


def run_module(name: str, *arguments: object) -> None:
    """Run a module of this repository on one core; exit with its exit code if it fails."""
    folder = Path(__file__).resolve().parent.parent
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", name, *map(str, arguments)]
    code = subprocess.run(command, check=False, env=environment).returncode
    if code:  # it has reported the error
        sys.exit(code)


def format_table(cases: Sequence[str], rows: list[ScoreRow]) -> list[str]:
    """Return a Markdown table: mean and standard deviation over seeds, and difference from the first case."""
    lines = [
        "| | seeds | accuracy, % | against the first, points | AUC | against the first |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [_line(case, cases[0], rows) for case in cases if any(row["case"] == case for row in rows)]


def _line(case: str, first: str, rows: list[ScoreRow]) -> str:
    mine, its = (
        {
            (row["seed"], row["set"]): (100 * row["accuracy"], row["auc"])
            for row in rows
            if row["case"] == name
        }
        for name in (case, first)
    )
    scores = np.array(list(mine.values()))
    spread = f" ± {scores[:, 0].std(ddof=1):.1f}" if len(scores) > 1 else ""
    accuracy, auc = scores.mean(axis=0)
    of_accuracy, of_auc = "", ""
    if case != first and (both := [it for it in mine if it in its]):
        apart = np.array([mine[it] for it in both]) - np.array([its[it] for it in both])
        of_accuracy, of_auc = format_interval(apart[:, 0], "+.1f"), format_interval(apart[:, 1], "+.3f")
    return f"| {case} | {len(scores)} | {accuracy:.1f}{spread} | {of_accuracy} | {auc:.3f} | {of_auc} |"


def format_interval(values: np.ndarray, form: str) -> str:
    """Return the mean over seeds and its 95 % interval; empty without values."""
    if len(values) < 2:
        return f"{values[0]:{form}}" if len(values) else ""
    chosen = np.random.default_rng(0).integers(0, len(values), (_DRAWS, len(values)))
    low, high = np.percentile(values[chosen].mean(axis=1), (2.5, 97.5))
    return f"{values.mean():{form}} ({low:{form}} to {high:{form}})"
