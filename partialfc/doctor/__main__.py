"""One rank of `partialfc doctor`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from partialfc.runtime.exit_codes import exit_on_input_error, exit_on_internal_error, hard_exit
from partialfc.runtime.process.launcher_link import exit_with_launcher, silence_resource_tracker
from partialfc.runtime.rank_environment import add_local_rank_argument, check_has_rank


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the checks from the command line; exit code 1 if there are problems."""
    parser = argparse.ArgumentParser(description="Examine the machines for a recipe.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--acceptance", type=Path, metavar="FILE", help="report of the acceptance checks")
    parser.add_argument("--duration", action="store_true", help="only predict the duration of the run")
    add_local_rank_argument(parser)
    options = parser.parse_args(arguments)
    exit_with_launcher()
    silence_resource_tracker()
    with exit_on_internal_error(), exit_on_input_error():
        _examine(options.recipe, options.overrides, options.acceptance, only_duration=options.duration)


def _examine(recipe: str, overrides: Sequence[str], report: Path | None, *, only_duration: bool) -> None:
    check_has_rank()
    # imported late: worker processes of this rank import this file, too, but do not need these
    from partialfc.config import load_config
    from partialfc.doctor.acceptance_report import write_report
    from partialfc.doctor.checks import ACCEPTANCE_CHECKS, CHECKS, list_problems, run_checks
    from partialfc.doctor.duration import predict_duration
    from partialfc.runtime import comm

    config = load_config(recipe, overrides)
    with comm.init_distributed(config.device) as dist_ctx:
        checks = CHECKS if report is None else CHECKS | ACCEPTANCE_CHECKS
        results = run_checks(config, dist_ctx, {"duration": predict_duration} if only_duration else checks)
        if report is not None and dist_ctx.is_main:
            write_report(report, results, config, dist_ctx)
        # The launcher ends all ranks once one has exited: not before everything is printed.
        comm.barrier(dist_ctx.host_group)
        if list_problems(results):
            hard_exit(1)


if __name__ == "__main__":
    main()
