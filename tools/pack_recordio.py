"""Pack a folder of faces, one folder an identity, into train.rec, train.idx and property."""

import argparse
from pathlib import Path

from partialfc.data.packing import pack_folder
from partialfc.runtime.errors import told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="FOLDER/IDENTITY/IMAGE")
    parser.add_argument("out", type=Path, help="the pack's folder")
    parser.add_argument("--size", type=int, default=112, help="pixels of the packed images, height and width")
    parser.add_argument(
        "--quality", type=int, default=95, help="of the JPEGs made of images that are no JPEG of that size"
    )
    options = parser.parse_args()
    with told():
        classes, count = pack_folder(
            options.folder, options.out, size=options.size, quality=options.quality, progress=True
        )
        print(f"{options.out}: {count} images of {classes} identities")


if __name__ == "__main__":
    main()
