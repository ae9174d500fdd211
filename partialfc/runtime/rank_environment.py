"""Environment variables by which a launcher tells a process its rank: our own, torchrun, DeepSpeed, mpirun, srun."""

import argparse
import os
from dataclasses import dataclass

from partialfc.errors import InputError

_ENV_RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of torch's init_method env://
# Number of processes that other launchers have started.
_FOREIGN_COUNTS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
}
_LOCAL_RANK = "LOCAL_RANK"


@dataclass(frozen=True)
class RankEnvironment:
    """Rank of this process, as its launcher set it."""

    rank: int
    world_size: int
    local_rank: int


def add_local_rank_argument(parser: argparse.ArgumentParser) -> None:
    """Accept --local-rank, which DeepSpeed and torch.distributed.launch add; LOCAL_RANK has precedence."""
    parser.add_argument("--local-rank", "--local_rank", action=_SetLocalRank, help=argparse.SUPPRESS)


class _SetLocalRank(argparse.Action):
    def __call__(
        self, parser: object, namespace: object, values: object, option_string: object = None
    ) -> None:
        os.environ.setdefault(_LOCAL_RANK, str(values))


def check_has_rank() -> None:
    """Check that this rank of a run was not started by a launcher that does not set torch's variables.

    Raises:
        InputError: If it was, and other processes with it: each would train alone.
    """
    if "RANK" not in os.environ and (found := _foreign_launcher()):
        raise InputError(
            f"{found}: expected RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process; "
            "set them, or start `partialfc train` once per machine"
        )


def read_rank_environment() -> RankEnvironment | None:
    """Return the rank of this process; None if it was started alone.

    Raises:
        InputError: If a variable is missing or wrong.
    """
    if "RANK" not in os.environ:
        return None
    world_size = _read_count("WORLD_SIZE", at_least=1)
    rank = _read_count("RANK")
    if rank >= world_size:
        raise InputError(f"RANK: expected less than WORLD_SIZE={world_size}, got {rank}")
    if world_size == 1 and "MASTER_ADDR" not in os.environ:
        return None
    for name in _ENV_RENDEZVOUS:
        if not os.environ.get(name):
            raise InputError(f"{name}: expected in the environment, since RANK={rank} is; torchrun sets both")
    _read_count("MASTER_PORT")
    return RankEnvironment(rank, world_size, _read_count(_LOCAL_RANK) if _LOCAL_RANK in os.environ else 0)


def check_launched_once(nodes: int) -> None:
    """Check that no other launcher has started several launchers of one run, each of which would be a separate run.

    Args:
        nodes: Machines of the run (`--nodes`).

    Raises:
        InputError: If one has.
    """
    if _LOCAL_RANK in os.environ and _count("WORLD_SIZE") > 1:
        raise InputError(
            f"{_LOCAL_RANK} is set: expected no torchrun around partialfc, which starts the ranks itself; "
            "to use torchrun, start `-m partialfc.train` with it"
        )
    if nodes > 1:
        return
    if found := _foreign_launcher():
        raise InputError(
            f"{found}: expected 1 process; call partialfc without it: it starts the ranks of a machine, and in a "
            "SLURM job those of all nodes"
        )
    if "RANK" in os.environ and _count("WORLD_SIZE") > 1:
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} and RANK are set, but --nodes is 1; pass --nodes, --endpoint and "
            "--id, or unset RANK"
        )


def _foreign_launcher() -> str | None:
    """Return which launcher without torch's variables has started several processes, if one has."""
    for name, launcher in _FOREIGN_COUNTS.items():
        if name.startswith("SLURM") and "SLURM_STEP_ID" not in os.environ:
            continue
        if _count(name) > 1:
            return f"{launcher} with {os.environ[name]} processes ({name})"
    return None


def _count(name: str) -> int:
    """Return a variable with a number; 0 if it is missing."""
    return _read_count(name) if name in os.environ else 0


def _read_count(name: str, at_least: int = 0) -> int:
    text = os.environ.get(name)
    if text is None or not text.isdecimal() or int(text) < at_least:
        found = "nothing" if text is None else repr(text)
        raise InputError(f"{name}: expected a number of at least {at_least} in the environment, got {found}")
    return int(text)
