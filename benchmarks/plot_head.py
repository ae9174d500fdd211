"""Plot results of benchmarks/head.py over the number of identities: step time, and memory with its plan."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot(rows: list[dict[str, Any]], picture: Path) -> None:
    """Plot the rows written by --json; one line for each storage type."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    times, memory = figure.subplots(1, 2)
    for kind in sorted({row_label(row) for row in rows}):
        mine = sorted((row for row in rows if row_label(row) == kind), key=lambda row: row["num_classes"])
        identities = [row["num_classes"] for row in mine]
        times.plot(identities, [row["ours_ms"] for row in mine], marker="o", label=kind)
        measured = [row["resident_bytes"] / 1e6 for row in mine]
        planned = [(row["planned_bytes"] + row["planned_host_bytes"]) / 1e6 for row in mine]
        (line,) = memory.plot(identities, measured, "o", label=f"{kind}: measured")
        memory.plot(identities, planned, "-", color=line.get_color(), label=f"{kind}: planned")
    times.set_ylim(bottom=0)
    times.set_title("a step of the head, ms")
    memory.set_title("memory of a rank, MB")
    memory.set_yscale("log")
    for axes in (times, memory):
        axes.set_xscale("log")
        axes.set_xlabel("identities")
        axes.grid(alpha=0.3)
        axes.legend()
    FigureCanvasAgg(figure).print_png(str(picture))


def row_label(row: dict[str, Any]) -> str:
    return f"centers {row['centers_dtype']}, optimizer state {row['optim_state_dtype']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, nargs="+", help="files written by benchmarks.head --json")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    plot([row for path in options.rows for row in json.loads(path.read_text())], options.out)


if __name__ == "__main__":
    main()
