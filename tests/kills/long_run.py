"""Kills runs as often as expected: python tests/kills/long_run.py --kills 100 --seed 0 --ranks 2

Each run is killed until it is done, and must then have the bits of one that was not.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]


def main() -> None:
    from kills.killing import Killing

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        killing = Killing(Path(folder), options.ranks, options.seed)
        killing.undisturbed()
        run = 0
        while sum(killing.counts.values()) < options.kills:
            run += 1
            killing.kill_until(options.kills, f"run_{run}")
            print(f"run {run}: the bits of the undisturbed one", flush=True)
        print(f"{sum(killing.counts.values())} kills in {run} runs: {killing.counts}")


if __name__ == "__main__":
    main()
