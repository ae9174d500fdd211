"""Say what is in a pack: its dialect, counts, sizes and images per identity; and draw some of its images.

partialfc inspect_recordio PACK --sheet faces.png
"""

import argparse
from pathlib import Path

from partialfc.data.packs.inspection import contact_sheet, summarized
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec")
    parser.add_argument("--sheet", type=Path, help="draw 160 images there, as PNG or JPEG")
    options = parser.parse_args()
    with exit_on_input_error():
        print(*summarized(options.pack, progress=True).lines(), sep="\n")
        if options.sheet:
            contact_sheet(options.pack, options.sheet)


if __name__ == "__main__":
    main()
