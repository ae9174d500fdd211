"""Write the images of a pack, byte for byte, to OUT/CLASS/KEY.jpg. May be repeated where it was interrupted.

partialfc unpack_recordio PACK OUT
"""

import argparse
from pathlib import Path

from partialfc.data.packs.unpacking import unpack
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec")
    parser.add_argument("out", type=Path, help="folder to write to")
    options = parser.parse_args()
    with exit_on_input_error():
        count = unpack(options.pack, options.out, progress=True)
        print(f"{options.out}: {count} images")


if __name__ == "__main__":
    main()
