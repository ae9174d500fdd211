"""One rank of a training run: one of those that the launcher started, else the only one."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from partialfc.config import load_config
from partialfc.runtime import comm
from partialfc.runtime.errors import exit_on_input_error
from partialfc.training.loop import train


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description="Train a face recogniser from a recipe.")
    parser.add_argument("recipe", type=Path, help="YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    with exit_on_input_error():
        config = load_config(options.recipe, options.overrides)
        with comm.join(config.device) as ranks:
            train(config, ranks)


if __name__ == "__main__":
    main()
