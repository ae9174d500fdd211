"""What the ranks run on, and with."""

import os
import socket
from collections.abc import Mapping

from partialfc.config import Config
from partialfc.doctor.result import Finding
from partialfc.runtime import comm
from partialfc.runtime import versions as runs_with
from partialfc.runtime.comm import Ranks


def versions(config: Config, ranks: Ranks) -> Finding:
    """Those of every rank; it is a problem where one has others than the first."""
    own = runs_with.versions(ranks.device)
    everyones = comm.of_all_ranks((socket.gethostname(), own), ranks.host)
    (first_host, first), *others = everyones
    problems = [
        f"rank {rank} on {host} has {_differing(found, first)}; rank 0 on {first_host} has {_differing(first, found)}"
        for rank, (host, found) in enumerate(others, start=1)
        if found != first
    ]
    return Finding([", ".join(f"{name} {version}" for name, version in first.items())], problems)


def devices(config: Config, ranks: Ranks) -> Finding:
    """The device of every rank; it is a problem where two share a GPU."""
    own = (socket.gethostname(), _device(ranks), _host())
    everyones = comm.of_all_ranks(own, ranks.host)
    lines = []
    for host in dict.fromkeys(it[0] for it in everyones):
        here = [it for it in everyones if it[0] == host]
        kinds = ", ".join(dict.fromkeys(device for _, (_, device), _ in here))
        lines.append(f"{host}: {len(here)} rank(s) on {kinds}; {here[0][2]}")
    uses = [(host, name) for host, (name, _), _ in everyones]
    shared = sorted({it for it in uses if uses.count(it) > 1 and it[1].startswith("cuda")})
    return Finding(lines, [f"several ranks on {name} of {host}; wanted one each" for host, name in shared])


def _device(ranks: Ranks) -> tuple[str, str]:
    """Which one, and what it is."""
    name = str(ranks.device) if ranks.device.type == "cuda" else "cpu"
    return name, runs_with.described(ranks.device)


def _host() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def _differing(found: Mapping[str, str], other: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items() if other.get(name) != version)
