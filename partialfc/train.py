"""One rank of a training run: one of those that the launcher started, else the only one."""

import argparse
import os
import sys
from collections.abc import Sequence

from partialfc.runtime.exit_codes import DIVERGED, STOPPED, exit_on_defect, exit_on_input_error
from partialfc.runtime.process.launcher_link import end_with_launcher, has_launcher, tidy_up_quietly
from partialfc.runtime.process.signals import StopRequest


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description="Train a face recogniser from a recipe.")
    parser.add_argument("recipe", help="YAML file, or the name of a recipe that ships")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    end_with_launcher()
    tidy_up_quietly()
    stop = StopRequest(first=os.environ.get("RANK", "0") == "0", launched=has_launcher())
    with stop.listening(), exit_on_defect(), exit_on_input_error():
        code = _trained(options.recipe, options.overrides, stop)
    sys.exit(code)


def _trained(recipe: str, overrides: Sequence[str], stop: StopRequest) -> int:
    """The exit code of the run."""
    # Here: a process that the rank spawns, to draw faces or to read them, imports this file, but has no use for these.
    from partialfc.config import load_config
    from partialfc.runtime import comm
    from partialfc.runtime.process import flight_recorder
    from partialfc.training.health import Diverged
    from partialfc.training.loop import train

    config = load_config(recipe, overrides)
    if config.launch.flight_recorder:
        flight_recorder.enable()
    with comm.join(config.device) as ranks:
        try:
            code = STOPPED if train(config, ranks, stop).stopped else 0
        except Diverged as problem:  # on all ranks
            code = DIVERGED
            if ranks.first:
                print(f"error: {problem}", file=sys.stderr, flush=True)
        comm.barrier(ranks.host)  # the launcher ends all when one has ended: not before all is said
    return code


if __name__ == "__main__":
    main()
