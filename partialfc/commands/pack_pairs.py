"""Pack the pairs of a listing, as LFW's pairs.txt, into a .bin verification set."""

import argparse
from pathlib import Path

from partialfc.data.packs.pairs import pack_pairs
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, help="the listing")
    parser.add_argument("folder", type=Path, help="FOLDER/NAME/NAME_0001.jpg")
    parser.add_argument("out", type=Path, help="the .bin file")
    options = parser.parse_args()
    with exit_on_input_error():
        print(f"{options.out}: {pack_pairs(options.pairs, options.folder, options.out)} pairs")


if __name__ == "__main__":
    main()
