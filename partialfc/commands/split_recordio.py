"""Split a pack in two of different identities: one to train on, one held out.

partialfc split_recordio PACK TRAIN HELD --identities 1000
"""

import argparse
from pathlib import Path

from partialfc.data.packs.merge_split import split
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec")
    parser.add_argument("rest", type=Path, help="folder for the others")
    parser.add_argument("held", type=Path, help="folder for those that are held out")
    parser.add_argument("--identities", type=int, required=True, help="how many are held out")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    with exit_on_input_error():
        written = split(
            options.pack,
            options.rest,
            options.held,
            identities=options.identities,
            seed=options.seed,
            progress=True,
        )
        for folder, (classes, count) in zip((options.rest, options.held), written, strict=True):
            print(f"{folder}: {count} images of {classes} identities")


if __name__ == "__main__":
    main()
