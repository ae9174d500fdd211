"""One rank of `partialfc doctor`."""

import argparse
from collections.abc import Sequence

from partialfc.runtime.exit_codes import end_at_once, exit_on_defect, exit_on_input_error
from partialfc.runtime.process.launcher_link import end_with_launcher, tidy_up_quietly


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine from the command line; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(description="Examine the machines for a recipe.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    end_with_launcher()
    tidy_up_quietly()
    with exit_on_defect(), exit_on_input_error():
        _examine(options.recipe, options.overrides)


def _examine(recipe: str, overrides: Sequence[str]) -> None:
    # Here, as a process that the rank spawns, to draw faces or to read them, imports this file, but has no use for these.
    from partialfc.config import load_config
    from partialfc.doctor.checks import examined
    from partialfc.runtime import comm

    config = load_config(recipe, overrides)
    with comm.join(config.device) as ranks:
        problems = examined(config, ranks)
        comm.barrier(ranks.host)  # the launcher ends all when one has ended: not before all is said
        if problems:
            end_at_once(1)


if __name__ == "__main__":
    main()
