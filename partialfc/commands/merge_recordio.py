"""Merge packs into one, the identities of each kept apart. May be repeated where it was interrupted.

partialfc merge_recordio ms1m/ glint/ OUT
"""

import argparse
from pathlib import Path

from partialfc.data.packs.merge_split import merge
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packs", type=Path, nargs="+", help="folders with train.rec")
    parser.add_argument("out", type=Path, help="the merged pack's folder")
    options = parser.parse_args()
    with exit_on_input_error():
        classes, count = merge(options.packs, options.out, progress=True)
        print(f"{options.out}: {count} images of {classes} identities")


if __name__ == "__main__":
    main()
