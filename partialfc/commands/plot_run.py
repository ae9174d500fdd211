"""Draw runs above each other: loss, learning rate, accuracy.

partialfc plot_run output/first output/second --out runs.png
"""

import argparse
from pathlib import Path

from partialfc.monitoring.figures import draw_runs
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to draw")
    options = parser.parse_args()
    with exit_on_input_error():
        draw_runs([run / "metrics.jsonl" for run in options.runs], options.out)


if __name__ == "__main__":
    main()
