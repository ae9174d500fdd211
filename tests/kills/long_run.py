"""Disturb runs by signals, full disks and flipped bits; each must end with the bits of an undisturbed run.

    .venv/bin/python tests/kills/long_run.py [--ranks 2] [--seed 0]     # about 20 minutes; full disks need root

Prints every event and a table. The first run that ends otherwise, or ends by a traceback, ends the campaign.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from kills.disturbed_runs import FULL_DISK, KILLS_IN_A_SAVE, DisturbedRuns  # noqa: E402
from kills.flipped_bits import flip_bits  # noqa: E402

STOPS = (
    "a stop at the start",
    "a stop in training",
    "a stop in an evaluation",
    "a stop in a save",
    "a stop in a load",
)
NUMBERS = dict.fromkeys(STOPS, 4) | {
    "a kill of a rank": 10,
    "a kill of a data worker": 10,
    "a kill of the launcher": 10,
    "a kill in a load": 2,
    "a kill in an evaluation": 2,
    FULL_DISK: 6,
}
KILLS_IN_SAVES, FLIPS = 10, 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    events = [event for event, number in NUMBERS.items() for _ in range(number)]
    events += islice(cycle(KILLS_IN_A_SAVE), KILLS_IN_SAVES)
    with tempfile.TemporaryDirectory() as folder:
        with small_disk(Path(folder, "disk")) as disk:
            runs = DisturbedRuns(disk, options.ranks, options.seed)
            runs.run_undisturbed()
            number = 0
            while events:
                number += 1
                runs.disturb(events, f"run_{number}")
                print(f"run {number}: the bits of the undisturbed one", flush=True)
        outcomes = flip_bits(Path(folder, "flips"), FLIPS, options.seed)
    for event, count in sorted(runs.counts.items()):
        print(f"{event:40} {count}")
    for name, counts in outcomes.items():
        print(f"flips of {name:45} {dict(counts)}")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 64 megabytes in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


if __name__ == "__main__":
    main()
