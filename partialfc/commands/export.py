"""Export a run: OUT/model.onnx (any batch), OUT/model.safetensors, and the model card OUT/README.md.

partialfc export output/mine exported/
"""

import argparse
from pathlib import Path

from partialfc.inference.export import export
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder, or a checkpoint of it")
    parser.add_argument("out", type=Path, help="the folder to write to")
    options = parser.parse_args()
    with exit_on_input_error():
        cosine = export(options.run, options.out)
        print(f"{options.out}: ONNX and torch agree to a cosine of {cosine:.7f} at least")


if __name__ == "__main__":
    main()
