"""The options of every command that takes a network."""

import argparse
from pathlib import Path

from partialfc.inference.recognizer import Recognizer, load


def add_network(parser: argparse.ArgumentParser) -> None:
    """What `network_of` reads."""
    parser.add_argument("weights", type=Path, help="a run, a checkpoint, .pth, .pt, .safetensors or .onnx")
    parser.add_argument("--backbone", help="of weights that do not say, such as iresnet100")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])


def network_of(options: argparse.Namespace) -> Recognizer:
    """InputError or OSError where it cannot be loaded."""
    return load(options.weights, backbone=options.backbone, device=options.device)
