"""One rank of a training run, started by a launcher or alone."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from partialfc.runtime.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_DIVERGED,
    EXIT_STOPPED,
    exit_on_input_error,
    exit_on_internal_error,
    hard_exit,
)
from partialfc.runtime.process.launcher_link import exit_with_launcher, has_launcher, silence_resource_tracker
from partialfc.runtime.process.signals import StopRequest
from partialfc.runtime.rank_environment import add_local_rank_argument, check_has_rank


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description="Train a face recognition model from a recipe.")
    parser.add_argument("recipe", help="YAML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    add_local_rank_argument(parser)
    options = parser.parse_args(arguments)
    exit_with_launcher()
    silence_resource_tracker()
    stop = StopRequest(is_main=os.environ.get("RANK", "0") == "0", has_launcher=has_launcher())
    with stop.install(), exit_on_internal_error(), exit_on_input_error():
        code = _train_rank(options.recipe, options.overrides, stop)
    sys.exit(code)


def _train_rank(recipe: str, overrides: Sequence[str], stop_request: StopRequest) -> int:
    """Train and return the exit code."""
    check_has_rank()
    # Imported late: worker processes of this rank import this file, too, but do not need these.
    import torch

    from partialfc.config import load_config
    from partialfc.runtime import comm
    from partialfc.runtime.process import flight_recorder
    from partialfc.training.gpu_memory import explain_out_of_memory
    from partialfc.training.health import DivergenceError
    from partialfc.training.loop import train

    config = load_config(recipe, overrides)
    if config.launch.flight_recorder:
        flight_recorder.enable()
    with comm.init_distributed(config.device) as dist_ctx:
        try:
            code = EXIT_STOPPED if train(config, dist_ctx, stop_request).stop_signal else 0
        except DivergenceError as problem:  # on all ranks
            code = EXIT_DIVERGED
            if dist_ctx.is_main:
                print(f"error: {problem}", file=sys.stderr, flush=True)
        except torch.OutOfMemoryError as error:  # on this rank, while others wait for it in a collective
            print(f"error: {explain_out_of_memory(error, Path(config.output), dist_ctx)}", file=sys.stderr)
            hard_exit(EXIT_BAD_INPUT)
        # The launcher ends all ranks once one has exited: not before everything is printed.
        comm.barrier(dist_ctx.host_group)
    return code


if __name__ == "__main__":
    main()
