"""metrics.jsonl: one JSON object a line, and what a run goes by of them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from partialfc.evaluation.sets import Scores, primary_score
from partialfc.runtime.files import atomic_write, with_undefined

# Keys of lines, for records that are damaged: each is named in one line.
DAMAGED = ("unreadable", "corrupt")
_LISTED = 1000  # keys in a summary

MetricsRecord = dict[str, Any]  # with "step": the number of steps taken


class MetricsFile:
    """What an earlier part of the run wrote stays, up to the step that the run goes on from.

    start: that step; 0 for a fresh run, which keeps nothing.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.loss: float | None = None  # newest; None before the first
        self.last_evaluated_step: int | None = None  # of the newest scores
        self.verification: list[
            Mapping[str, Scores]
        ] = []  # of each set, by its name: the first, and the newest
        self.best: dict[
            str, tuple[float, int]
        ] = {}  # of each set: its headline score, and after how many steps
        self.damaged: dict[str, dict[int, None]] = {
            name: {} for name in DAMAGED
        }  # keys of records, each once
        lines = path.read_bytes().splitlines() if path.exists() and start else []
        earlier = [line for line in map(_parse_line, lines) if line and line["step"] <= start]
        for line in earlier:
            self._track(line)
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in earlier))
        self._file = path.open("ab")

    def write(self, line: MetricsRecord) -> None:
        """Write a line, which is in the file at once."""
        self._track(line)
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def summary(self) -> dict[str, Any]:
        """The newest loss, and of each set that is evaluated now the first, the newest and the best scores."""
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


def _parse_line(line: bytes) -> MetricsRecord | None:
    """None for a line that a killed process left half written."""
    try:
        parsed: MetricsRecord = msgspec.json.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return with_undefined(parsed)
