"""Starts the ranks of a run on this machine, with the recipe checked before any of them starts."""

import argparse
import math
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from partialfc import plan
from partialfc.config import Config, load_config
from partialfc.data.order import check_world_size, world_sizes
from partialfc.errors import InputError
from partialfc.launching.ranks import Machines, run_ranks
from partialfc.runtime.errors import exit_on_input_error
from partialfc.runtime.precision import uses_cuda

CPU_RANKS = 2  # without GPUs: enough to show that ranks work together


def num_ranks(config: Config, wanted: int | None, nodes: int) -> int:
    """How many ranks to start on each of `nodes` nodes: `wanted`, else one per GPU, as many as the batch allows.

    InputError where `wanted`, or any number on so many nodes, does not fit the batch or the machine.
    """
    use_cuda = uses_cuda(config.device)
    devices = torch.cuda.device_count() if use_cuda else CPU_RANKS
    if devices == 0 or (wanted is not None and wanted > devices and use_cuda):
        raise InputError(f"{wanted or 1} ranks on cuda, but torch sees {devices} GPUs on this machine")
    fitting = [size // nodes for size in world_sizes(config) if size % nodes == 0]
    chosen = (
        wanted if wanted is not None else max((size for size in fitting if size <= devices), default=devices)
    )
    check_world_size(config, chosen * nodes)
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the recipe, start the ranks, wait for them."""
    options = _parsed(arguments)
    with exit_on_input_error():
        config = load_config(options.recipe, options.overrides)
        if options.plan:
            print(_planned(config, options))
            return
        ranks = num_ranks(config, options.ranks, options.nodes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    machines = Machines(options.nodes, options.endpoint, options.id, ranks)
    command = ["-m", "partialfc.train", str(options.recipe), *options.overrides]
    sys.exit(run_ranks(command, machines, config.launch.restarts))


def checked(arguments: Sequence[str]) -> Config:
    """The recipe that these arguments of main() name. Ends the program where it does not fit the number of ranks."""
    options = _parsed(arguments)
    with exit_on_input_error():
        config = load_config(options.recipe, options.overrides)
        num_ranks(config, options.ranks, options.nodes)
    return config


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.sh", description="Train from a recipe on this machine.")
    parser.add_argument("--ranks", type=int, help="processes to start; default: one per GPU, or 2 on the CPU")
    parser.add_argument(
        "--nodes", type=int, default=1, help="machines that take part, each with its own launcher"
    )
    parser.add_argument("--endpoint", default="localhost:0", help="host:port where several nodes meet")
    parser.add_argument("--id", default=str(uuid.uuid4()), help="names the job at the endpoint")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    _add_plan(parser)
    return parser.parse_intermixed_args(arguments)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("plan", "what a run would need, without running it")
    group.add_argument("--plan", action="store_true", help="print memory and traffic of a rank, and stop")
    group.add_argument("--identities", type=int, help="default: those of the recipe's pack")
    group.add_argument("--gpus", type=int, help="over all nodes; default: the ranks of this machine")
    group.add_argument("--gpu", default="h100", help=", ".join(plan.DEVICES))
    group.add_argument("--gpu-memory", type=float, metavar="GIB", help="default: that of --gpu")


def _planned(config: Config, options: argparse.Namespace) -> str:
    """What to print; InputError names an option that makes no sense."""
    for name in ("identities", "gpus", "gpu_memory"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value}: wanted a number above 0")
    if options.gpu not in plan.DEVICES:
        raise InputError(f"--gpu {options.gpu}: wanted one of {', '.join(plan.DEVICES)}")
    gpus = options.gpus or num_ranks(config, options.ranks, options.nodes) * options.nodes
    check_world_size(config, gpus)
    identities = options.identities or plan.identities_of(config)
    memory = None if options.gpu_memory is None else int(options.gpu_memory * 2**30)
    return plan.report(plan.Job(config, identities, gpus), options.gpu, memory)


if __name__ == "__main__":
    main()
