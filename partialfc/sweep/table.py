"""Results of a sweep: scores of its runs, averaged over seeds, as a table and as JSON."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from partialfc.evaluation.sets import primary_score
from partialfc.input_files import read_file
from partialfc.runtime.files import SUMMARY_FILE, atomic_write, decode_json
from partialfc.runtime.metrics_records import StoredScores, decode_scores
from partialfc.sweep.grid import Grid

# Student's t, two-sided 95 %, by degrees of freedom from 1; 1.96 beyond
_STUDENT_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class ResultRow:
    """Runs that differ in their seeds only."""

    settings: tuple[tuple[str, str], ...]
    scores: Mapping[str, Sequence[float]]  # per set, one score per seed


@dataclass(frozen=True)
class SweepResults:
    """Results of the finished runs, best first."""

    rows: list[ResultRow]
    runs: list[dict[str, Any]]  # each: settings and the contents of its summary
    num_unfinished: int

    @property
    def sets(self) -> list[str]:
        """Evaluation sets that every row has."""
        names = [list(row.scores) for row in self.rows]
        return [name for name in names[0] if all(name in it for it in names)] if names else []

    def rank_sums(self) -> list[float]:
        """Return for each row the sum of its ranks by mean score over the sets, 1 the best, ties shared (Borda)."""
        sums = [0.0] * len(self.rows)
        for name in self.sets:
            means = [statistics.fmean(row.scores[name]) for row in self.rows]
            if any(map(math.isnan, means)):  # an undefined score gives no rank
                continue
            for place, mean in enumerate(means):
                sums[place] += sum(it > mean for it in means) + (means.count(mean) + 1) / 2
        return sums


class _StoredSummary(msgspec.Struct):
    verification: StoredScores = {}


def collect_results(grid: Grid, out: Path) -> SweepResults:
    """Return the results of the grid's runs in `out`."""
    rows: dict[tuple[tuple[str, str], ...], dict[str, list[float]]] = {}
    runs, missing = [], 0
    for point in grid.points:
        path = out / point.name / SUMMARY_FILE
        if not path.exists():
            missing += 1
            continue
        content, problem = read_file(path), f"{path}: expected the summary of a run"
        verification = decode_scores(decode_json(content, _StoredSummary, problem).verification)
        summary = decode_json(content, dict[str, Any], problem) | {"verification": verification}
        runs.append({"settings": dict(point.settings), "folder": point.name, **summary})
        scores = rows.setdefault(point.settings_without_seed(), {})
        for name, found in verification.items():
            scores.setdefault(name, []).append(primary_score(found)[1])
    results = SweepResults([ResultRow(*it) for it in rows.items()], runs, missing)
    order = sorted(range(len(results.rows)), key=results.rank_sums().__getitem__)
    return SweepResults([results.rows[it] for it in order], runs, missing)


def table_cells(results: SweepResults) -> list[list[str]]:
    """Return the table: its header, and a line for each row."""
    keys = [key for key, _ in results.rows[0].settings] if results.rows else []
    lines = [[*keys, "runs", *results.sets, "rank sum"]]
    for row, rank_sum in zip(results.rows, results.rank_sums(), strict=True):
        count = max((len(it) for it in row.scores.values()), default=0)
        values = [value for _, value in row.settings]
        lines.append(
            [
                *values,
                str(count),
                *(format_mean_interval(row.scores[it]) for it in results.sets),
                f"{rank_sum:g}",
            ]
        )
    return lines


def format_mean_interval(scores: Sequence[float]) -> str:
    """Return mean and 95 % confidence interval over seeds in percent, by Student's t; for one seed the score alone."""
    mean = statistics.fmean(scores)
    if math.isnan(mean):  # a score that is undefined for the set
        return "-"
    if len(scores) < 2:
        return f"{mean:.1%}"
    degrees = len(scores) - 1
    quantile = _STUDENT_T_95[degrees - 1] if degrees <= len(_STUDENT_T_95) else 1.96
    half = quantile * statistics.stdev(scores) / len(scores) ** 0.5
    return f"{mean:.1%} ± {100 * half:.1f}"


def write_sweep_results(results: SweepResults, out: Path) -> None:
    """Write out/results.json with all scores, and out/results.md with the table."""
    header, *lines = table_cells(results)
    text = [header, ["---"] * len(header), *lines]
    with atomic_write(out / "results.json") as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(results.runs)))
    with atomic_write(out / "results.md") as temporary:
        temporary.write_text("".join(f"| {' | '.join(it)} |\n" for it in text), encoding="utf-8")
