"""Records of a run in metrics.jsonl, one JSON object per line."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from partialfc.errors import InputError
from partialfc.evaluation.sets import Scores, primary_score
from partialfc.input_files import read_file
from partialfc.runtime.files import atomic_write, name_os_errors
from partialfc.runtime.metrics_records import MetricsRecord, parse_record

# Keys of damaged records: each record is reported once.
DAMAGED = ("unreadable", "corrupt")
_LISTED = 1000  # keys per kind in a summary


class MetricsFile:
    """Metrics file of a run, and the values that are derived from its records.

    Records of an earlier part of the run are retained up to the step that it resumes from.

    Args:
        path: File to write.
        start: Step to resume from; 0 for a new run, which discards earlier records.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self.loss: float | None = None  # latest loss; None before the first
        self.last_evaluated_step: int | None = None  # step of the latest scores
        self.verification: list[
            Mapping[str, Scores]
        ] = []  # scores by set name: of the first and of the latest evaluation
        self.best: dict[str, tuple[float, int]] = {}  # best primary score of each set, and its step
        # Keys of damaged records, in order, without duplicates.
        self.damaged: dict[str, dict[int, None]] = {name: {} for name in DAMAGED}
        lines = read_file(path).splitlines() if path.exists() and start else []
        earlier = [line for line in _parse_lines(lines) if line["step"] <= start]
        for line in earlier:
            self._track(line)
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in earlier))
        self._file = path.open("ab")

    def write(self, line: MetricsRecord) -> None:
        """Write a record and flush it."""
        self._track(line)
        with name_os_errors(self._path):
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()

    def summary(self) -> dict[str, Any]:
        """Return the latest loss, and the first, latest and best scores of each current evaluation set."""
        verification = self.verification or [{}]
        damaged = {
            name: {"records": len(keys), "keys": sorted(keys)[:_LISTED]}
            for name, keys in self.damaged.items()
            if keys
        }
        return damaged | {
            "loss": self.loss,
            "verification_before": verification[0],
            "verification": verification[-1],
            "verification_best": {
                name: {primary_score(verification[-1][name])[0]: best, "step": at}
                for name, (best, at) in self.best.items()
                if name in verification[-1]
            },
        }

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _track(self, record: MetricsRecord) -> None:
        self.loss = record.get("loss", self.loss)
        for name, keys in self.damaged.items():
            keys |= dict.fromkeys(record.get(name, []))
        scores: Mapping[str, Scores] | None = record.get("verification")
        if scores is None:
            return
        self.verification = [*self.verification[:1], scores]
        self.last_evaluated_step = record["step"]
        for name, values in scores.items():
            _, value = primary_score(values)
            if math.isnan(value):
                continue
            if name not in self.best or value > self.best[name][0]:
                self.best[name] = value, record["step"]


def _parse_lines(lines: list[bytes]) -> Iterator[MetricsRecord]:
    """Yield the records of lines; a killed process may have left an incomplete one."""
    for line in lines:
        with suppress(InputError):
            yield parse_record(line)
