"""Pack faces into train.rec, train.idx and property. A call that was interrupted is gone on with by the same call.

partialfc pack_recordio faces/ pack/                        # faces/IDENTITY/IMAGE
partialfc pack_recordio faces/ more/ train.lst pack/        # merged, the identities of each kept apart
partialfc pack_recordio --min-images 5 shards/ pack/        # WebDataset tars; an LMDB likewise
"""

import argparse
from pathlib import Path

from partialfc.data.packs.pack_sources import Packing, pack
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        help="folders of identities, .lst listings, LMDB sets, WebDataset tars",
    )
    parser.add_argument("out", type=Path, help="the pack's folder")
    parser.add_argument("--size", type=int, default=112, help="pixels of the packed images, height and width")
    parser.add_argument(
        "--quality", type=int, default=95, help="of the JPEGs made of images that are no JPEG of that size"
    )
    parser.add_argument("--min-images", type=int, metavar="N", help="leave out identities with fewer")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="pack the images in a random order")
    options = parser.parse_args()
    with exit_on_input_error():
        packing = Packing(options.size, options.quality, options.min_images, options.shuffle)
        classes, count = pack(options.inputs, options.out, packing, progress=True)
        print(f"{options.out}: {count} images of {classes} identities")


if __name__ == "__main__":
    main()
