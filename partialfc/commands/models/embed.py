"""Embed all images in a folder and below. May be repeated where it was interrupted.

tools/embed.py output/mine faces/ embeddings.npz      # -> names [n], embeddings [n, D] of unit length
"""

import argparse
from pathlib import Path

from partialfc.evaluation.folder import embed_folder
from partialfc.evaluation.recognizer import load
from partialfc.runtime.errors import told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="a run, a checkpoint, .pth, .pt, .safetensors or .onnx")
    parser.add_argument("folder", type=Path, help="of aligned faces")
    parser.add_argument("out", type=Path, help="the .npz file")
    parser.add_argument("--backbone", help="of weights that do not say, such as iresnet100")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    with told():
        recognizer = load(options.weights, backbone=options.backbone, device=options.device)
        count = embed_folder(recognizer, options.weights, options.folder, options.out, progress=True)
        print(f"{options.out}: {count} images")


if __name__ == "__main__":
    main()
