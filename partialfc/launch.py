"""Starts the ranks of a run on this machine, with the recipe checked before any of them starts.

torch's elastic agent starts and watches them; unlike the torchrun command, this ends with the exit code of the
first rank that failed, and leaves it to that rank to say why.
"""

import argparse
import logging
import math
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from partialfc import plan
from partialfc.config import Config, load_config
from partialfc.data.order import check_world_size, world_sizes
from partialfc.errors import InputError
from partialfc.runtime.errors import EXIT_CODE, exit_on_input_error
from partialfc.runtime.precision import uses_cuda

# Seconds in which the other nodes' launchers see that their ranks ended with the same error: SLURM ends those that are
# left when the first is gone, and then gives their exit code.
_OTHERS_END = 5
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
    parser = argparse.ArgumentParser(prog="launch.sh", description="Train from a recipe on this machine.")
    parser.add_argument("--ranks", type=int, help="processes to start; default: one per GPU, or 2 on the CPU")
    parser.add_argument(
        "--nodes", type=int, default=1, help="machines that take part, each with its own launcher"
    )
    parser.add_argument("--endpoint", default="localhost:0", help="host:port where several nodes meet")
    parser.add_argument("--id", default=str(uuid.uuid4()), help="names the job at the endpoint")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--check", action="store_true", help="only check recipe and number of ranks")
    _add_plan(parser)
    options = parser.parse_intermixed_args(arguments)
    with exit_on_input_error():
        config = load_config(options.recipe, options.overrides)
        if options.plan:
            print(_planned(config, options))
            return
        ranks = num_ranks(config, options.ranks, options.nodes)
    if options.check:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    sys.exit(_launched(options, ranks))


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


def _launched(options: argparse.Namespace, ranks: int) -> int:
    """The exit code of the run."""
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the rank that failed says why
    module = ["-m", "partialfc.train", str(options.recipe), *options.overrides]
    try:
        with tempfile.TemporaryDirectory() as folder:
            elastic_launch(_elastic(options, ranks, folder), sys.executable)(*module)
    except ChildFailedError as failure:
        code = failure.get_first_failure()[1].exitcode
        if code == EXIT_CODE and options.nodes > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this one's exit code is known
            time.sleep(_OTHERS_END)
        return code if code > 0 else 128 - code  # a signal, as a shell tells it
    except SignalException as received:
        return 128 + int(received.sigval)
    finally:
        Console().show_cursor()  # on a terminal: a rank that was killed could not end its display
    return 0


def _elastic(options: argparse.Namespace, ranks: int, folder: str) -> LaunchConfig:
    """folder: of what the agent writes for itself, which else stays behind."""
    return LaunchConfig(
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        nproc_per_node=ranks,
        run_id=options.id,
        rdzv_backend="c10d",
        rdzv_endpoint=options.endpoint,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )


if __name__ == "__main__":
    main()
