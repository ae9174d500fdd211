"""What is known of how well a trained network verifies."""

import math
from pathlib import Path

import msgspec

from partialfc.evaluation.sets import Scores
from partialfc.inference.weights import resolve_checkpoint
from partialfc.runtime import checkpoint
from partialfc.runtime.files import decode_json, read_metrics

CONFIG_FILE = "config.json"  # in a folder that export wrote


def load_scores(path: Path) -> dict[str, Scores]:
    """By verification set: the scores of the evaluation at a checkpoint's step, given a run's folder, a checkpoint, or a
    folder that export wrote; empty where there was none. InputError where what the folder says is damaged.
    """
    if (path / CONFIG_FILE).is_file():
        return _read_export_config(path / CONFIG_FILE)
    made = resolve_checkpoint(path).resolve()
    if not made.is_dir() or not (metrics := made.parents[1] / "metrics.jsonl").is_file():
        return {}
    step = checkpoint.read_manifest(made).step
    found = [it for it in read_metrics(metrics) if it["step"] == step and "verification" in it]
    return dict(found[-1]["verification"]) if found else {}


class _ExportConfig(msgspec.Struct):
    verification: dict[str, dict[str, float | None]] = {}  # null: undefined


def _read_export_config(path: Path) -> dict[str, Scores]:
    found = decode_json(path.read_bytes(), _ExportConfig, f"{path}: not what an export writes").verification
    return {
        name: {key: math.nan if value is None else value for key, value in values.items()}
        for name, values in found.items()
    }
