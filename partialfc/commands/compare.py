"""The similarity of two aligned faces: the cosine of their embeddings.

partialfc compare output/mine a.jpg b.jpg
"""

import argparse
from pathlib import Path

import numpy as np

from partialfc.commands.options import add_network, network_of
from partialfc.data import images
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_network(parser)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args()
    with exit_on_input_error():
        recognizer = network_of(options)
        faces = [images.read(path, recognizer.network.input_size) for path in (options.first, options.second)]
        first, second = recognizer.embed(faces)
        print(f"{np.dot(first, second):.4f}")


if __name__ == "__main__":
    main()
