"""Embed all images in a folder and below. May be repeated where it was interrupted.

partialfc embed output/mine faces/ embeddings.npz      # -> names [n], embeddings [n, D] of unit length
"""

import argparse
from pathlib import Path

from partialfc.commands.options import add_network, network_of
from partialfc.inference.folder import embed_folder
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_network(parser)
    parser.add_argument("folder", type=Path, help="of aligned faces")
    parser.add_argument("out", type=Path, help="the .npz file")
    options = parser.parse_args()
    with exit_on_input_error():
        recognizer = network_of(options)
        count = embed_folder(recognizer, options.weights, options.folder, options.out, progress=True)
        print(f"{options.out}: {count} images")


if __name__ == "__main__":
    main()
