"""Launcher: validates the recipe and starts the ranks of a run on this machine."""

import os
import socket
import sys
import tempfile
import uuid
from dataclasses import dataclass, field

import torch

from partialfc.config import Config, load_config
from partialfc.config.durations import parse_seconds
from partialfc.data.sampler import check_world_size, valid_world_sizes
from partialfc.errors import InputError
from partialfc.launching.addresses import host_name_is_local_only, interface_towards
from partialfc.launching.local_ranks import launch_ranks
from partialfc.launching.rendezvous import ClusterSpec
from partialfc.runtime.devices import describe_gpus, explain_hidden_gpus, uses_cuda
from partialfc.runtime.platform import MALLOC_ENVIRONMENT, cpu_count
from partialfc.runtime.rank_environment import check_launched_once

CPU_RANKS = 2  # default without GPUs: the smallest distributed run


def new_name() -> str:
    """Return a unique run id for a rendezvous endpoint."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class LaunchRequest:
    """Request to launch a command such as `partialfc train`."""

    recipe: str
    overrides: tuple[str, ...] = ()
    ranks_per_node: int | None = None  # None: see num_ranks
    nodes: int = 1  # machines, each with its own launcher
    endpoint: str = "localhost:0"  # host:port of the rendezvous
    run_id: str = field(default_factory=new_name)  # of the rendezvous
    command: str = "train"  # "train" or "doctor"
    requeue: bool = False  # whether a stopped SLURM job requeues itself
    options: tuple[str, ...] = ()  # further options of the command, also for its ranks

    def validate(self) -> tuple[Config, int]:
        """Return the recipe and the number of ranks per machine.

        Raises:
            InputError: If they are inconsistent.
        """
        config = load_config(self.recipe, self.overrides)
        return config, num_ranks(config, self.ranks_per_node, self.nodes)

    def to_arguments(self) -> list[str]:
        """Return the equivalent arguments of `partialfc`."""
        ranks = [] if self.ranks_per_node is None else [f"--ranks={self.ranks_per_node}"]
        meeting = [f"--nodes={self.nodes}", f"--endpoint={self.endpoint}", f"--id={self.run_id}"]
        return [self.command, *meeting, *ranks, *self.options, self.recipe, *self.overrides]


def num_ranks(config: Config, requested: int | None, nodes: int) -> int:
    """Return the number of ranks to start per node.

    Defaults to one per GPU, reduced until the batch size divides evenly.

    Raises:
        InputError: If `requested`, or any number on that many nodes, is incompatible with the batch or
            the machine.
    """
    use_cuda = uses_cuda(config.device)
    devices = torch.cuda.device_count() if use_cuda else CPU_RANKS
    if devices == 0 or (requested is not None and requested > devices and use_cuda):
        raise InputError(f"device: cuda: expected {requested or 1} GPUs, but {describe_gpus()}")
    fitting = [size // nodes for size in valid_world_sizes(config) if size % nodes == 0]
    chosen = (
        requested
        if requested is not None
        else max((size for size in fitting if size <= devices), default=devices)
    )
    check_world_size(config, chosen * nodes)
    return chosen


def launch(request: LaunchRequest) -> int:
    """Validate the recipe, run the ranks, and return the exit code of the run."""
    check_launched_once(request.nodes)
    config, ranks = request.validate()
    if warning := explain_hidden_gpus(config.device):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    join_timeout = parse_seconds(config.launch.join_timeout)
    cluster = ClusterSpec(request.nodes, request.endpoint, request.run_id, ranks, join_timeout)
    _set_environment(config, cluster)
    command = ["-m", f"partialfc.{request.command}", *request.options, request.recipe, *request.overrides]
    restarts = config.launch.max_restarts if request.command == "train" else 0
    return launch_ranks(command, cluster, restarts, numa=config.launch.numa)


def _set_environment(config: Config, cluster: ClusterSpec) -> None:
    """Set the environment of the ranks, except for variables that the user has set."""
    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, cpu_count() // cluster.ranks_per_node))
    if config.backbone.compile:  # otherwise it would be in the temporary folder of the ranks
        os.environ.setdefault(
            "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
        )
    if interface := _gloo_interface(cluster):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    for name, value in MALLOC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _gloo_interface(cluster: ClusterSpec) -> str | None:
    """Return the network interface for gloo; None if it finds one by the host name of this machine.

    Host names of containers often do not resolve, and those of Debian resolve to a loopback address.
    """
    if cluster.nodes == 1:
        return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    return interface_towards(*cluster.host_and_port) if host_name_is_local_only() else None
