"""Records of metrics.jsonl, one JSON object per line."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from partialfc.errors import InputError
from partialfc.input_files import read_file

MetricsRecord = dict[str, Any]  # "step" is the number of completed steps
StoredScores = dict[
    str, dict[str, float | None]
]  # scores by evaluation set; JSON has null for an undefined one


class _Fields(msgspec.Struct):
    """Types of the fields that are read again; the writer adds others."""

    step: int
    loss: float | None = None
    lr: float | None = None
    images_per_second: float = 0.0
    time_ms: dict[str, float] = {}
    verification: StoredScores = {}
    unreadable: list[int] = []
    corrupt: list[int] = []


def read_metrics(path: Path) -> list[MetricsRecord]:
    """Return the records of a run. The last line may be incomplete, since the run may have been killed.

    Raises:
        InputError: If the file is not a metrics file of this version.
        FileNotFoundError: If the file does not exist.
    """
    *lines, rest = read_file(path).split(b"\n")
    records: list[MetricsRecord] = []
    for number, line in enumerate(lines + ([rest] if rest else []), 1):
        try:
            record = parse_record(line)
        except InputError as error:
            if number > len(lines) and records:
                break
            raise InputError(f"{path}, line {number}: expected a record of a run: {error}") from None
        if "gradient_norm" in record:
            raise InputError(f"{path}: metrics of a version before 0.3; since 0.3 gradient_norm is grad_norm")
        records.append(record)
    return records


def parse_record(line: bytes) -> MetricsRecord:
    """Return the record of a line, with undefined scores as NaN.

    Raises:
        InputError: If it is not a record; contains no path.
    """
    try:
        fields = msgspec.json.decode(line, type=_Fields)
        record: MetricsRecord = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(" ".join(str(error).split())[:100]) from None
    if "loss" in record and "lr" not in record:
        raise InputError("a loss without lr")
    if fields.verification:
        record["verification"] = decode_scores(fields.verification)
    return record


def decode_scores(stored: StoredScores) -> dict[str, Mapping[str, float]]:
    """Return stored scores with NaN for undefined ones, without sets that have none."""
    return {
        name: {key: math.nan if value is None else value for key, value in scores.items()}
        for name, scores in stored.items()
        if scores
    }
