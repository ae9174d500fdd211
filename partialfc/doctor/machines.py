"""What the ranks run on, and with."""

import os
import socket
from collections.abc import Mapping

from partialfc.config import Config
from partialfc.doctor.result import CheckResult
from partialfc.runtime import comm
from partialfc.runtime import versions as runs_with
from partialfc.runtime.comm import DistContext


def check_versions(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Those of every rank; it is a problem where one has others than the first."""
    own = runs_with.collect_versions(dist_ctx.device)
    everyones = comm.all_gather_object((socket.gethostname(), own), dist_ctx.host_group)
    (first_host, first), *others = everyones
    problems = [
        f"rank {rank} on {host} has {_format_differences(found, first)}; rank 0 on {first_host} has {_format_differences(first, found)}"
        for rank, (host, found) in enumerate(others, start=1)
        if found != first
    ]
    return CheckResult([", ".join(f"{name} {version}" for name, version in first.items())], problems)


def check_devices(config: Config, dist_ctx: DistContext) -> CheckResult:
    """The device of every rank; it is a problem where two share a GPU."""
    own = (socket.gethostname(), _describe_rank_device(dist_ctx), _describe_host())
    everyones = comm.all_gather_object(own, dist_ctx.host_group)
    lines = []
    for host in dict.fromkeys(it[0] for it in everyones):
        here = [it for it in everyones if it[0] == host]
        kinds = ", ".join(dict.fromkeys(device for _, (_, device), _ in here))
        lines.append(f"{host}: {len(here)} rank(s) on {kinds}; {here[0][2]}")
    uses = [(host, name) for host, (name, _), _ in everyones]
    shared = sorted({it for it in uses if uses.count(it) > 1 and it[1].startswith("cuda")})
    return CheckResult(
        lines, [f"several ranks on {name} of {host}; wanted one each" for host, name in shared]
    )


def _describe_rank_device(dist_ctx: DistContext) -> tuple[str, str]:
    """Which one, and what it is."""
    name = str(dist_ctx.device) if dist_ctx.device.type == "cuda" else "cpu"
    return name, runs_with.describe_device(dist_ctx.device)


def _describe_host() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def _format_differences(found: Mapping[str, str], other: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items() if other.get(name) != version)
