"""A launcher: starts the ranks of a run on this machine, with the recipe checked before any of them starts."""

import os
import uuid
from dataclasses import dataclass, field

import torch

from partialfc.config import Config, load_config
from partialfc.data.sampler import check_world_size, world_sizes
from partialfc.errors import InputError
from partialfc.launching.local_ranks import Machines, run_ranks
from partialfc.runtime.precision import uses_cuda

CPU_RANKS = 2  # without GPUs: enough to show that ranks work together


def new_name() -> str:
    """Return a name that no other job has at an endpoint."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Launch:
    """What was asked for, as `partialfc train` has it."""

    recipe: str
    overrides: tuple[str, ...] = ()
    ranks: int | None = None  # to start on each machine; None: see num_ranks
    nodes: int = 1  # machines that take part, each with its own launcher
    endpoint: str = "localhost:0"  # host:port where they meet
    name: str = field(default_factory=new_name)  # of the job, at the endpoint
    command: str = "train"  # or doctor: what each rank is
    requeue: bool = False  # whether a SLURM job that is stopped is requeued

    def checked(self) -> tuple[Config, int]:
        """The recipe, and how many ranks to start on each machine. InputError where they do not fit each other."""
        config = load_config(self.recipe, self.overrides)
        return config, num_ranks(config, self.ranks, self.nodes)

    def arguments(self) -> list[str]:
        """The same for `partialfc`."""
        ranks = [] if self.ranks is None else [f"--ranks={self.ranks}"]
        meeting = [f"--nodes={self.nodes}", f"--endpoint={self.endpoint}", f"--id={self.name}"]
        return [self.command, *meeting, *ranks, self.recipe, *self.overrides]


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


def launch(asked: Launch) -> int:
    """Check the recipe, start the ranks, wait for them; returns the run's exit code."""
    config, ranks = asked.checked()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    machines = Machines(asked.nodes, asked.endpoint, asked.name, ranks)
    command = ["-m", f"partialfc.{asked.command}", asked.recipe, *asked.overrides]
    restarts = config.launch.max_restarts if asked.command == "train" else 0
    return run_ranks(command, machines, restarts, numa=config.launch.numa)
