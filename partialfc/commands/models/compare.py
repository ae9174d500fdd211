"""The similarity of two aligned faces: the cosine of their embeddings.

tools/compare.py output/mine a.jpg b.jpg
"""

import argparse
from pathlib import Path

import numpy as np

from partialfc.data import images
from partialfc.evaluation.recognizer import load
from partialfc.runtime.errors import told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="a run, a checkpoint, .pth, .pt, .safetensors or .onnx")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--backbone", help="of weights that do not say, such as iresnet100")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    with told():
        recognizer = load(options.weights, backbone=options.backbone, device=options.device)
        faces = [images.read(path, recognizer.network.input_size) for path in (options.first, options.second)]
        first, second = recognizer.embed(faces)
        print(f"{np.dot(first, second):.4f}")


if __name__ == "__main__":
    main()
