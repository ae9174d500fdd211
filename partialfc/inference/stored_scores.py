"""Stored verification scores of a trained model."""

from pathlib import Path

import msgspec

from partialfc.evaluation.sets import Scores
from partialfc.inference.weights import resolve_checkpoint
from partialfc.input_files import read_file
from partialfc.runtime import checkpoint
from partialfc.runtime.files import decode_json
from partialfc.runtime.metrics_records import StoredScores, decode_scores, read_metrics

CONFIG_FILE = "config.json"  # in an exported folder


def load_scores(path: Path) -> dict[str, Scores]:
    """Return the scores by verification set of a run, a checkpoint or an exported folder.

    Empty without stored scores.

    Raises:
        InputError: If the files are damaged.
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
    verification: StoredScores = {}


def _read_export_config(path: Path) -> dict[str, Scores]:
    found = decode_json(read_file(path), _ExportConfig, f"{path}: expected a file of partialfc export")
    return decode_scores(found.verification)
