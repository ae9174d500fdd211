"""Draw the losses of several runs above each other, with their differences from the first."""

import argparse
from pathlib import Path

from partialfc.monitoring.figures import draw_comparison
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="output folders of runs, the first to compare with"
    )
    parser.add_argument("--out", type=Path, required=True, help="the PNG to draw")
    options = parser.parse_args()
    with exit_on_input_error():
        largest = draw_comparison([run / "metrics.jsonl" for run in options.runs], options.out)
        for name, difference in largest.items():
            print(f"{name}: largest relative difference of the loss {difference:.1e}")


if __name__ == "__main__":
    main()
