"""Checks of devices and software versions."""

import os
import socket
from collections.abc import Mapping

from partialfc.config import Config
from partialfc.doctor.result import CheckResult
from partialfc.runtime import comm
from partialfc.runtime import versions as runs_with
from partialfc.runtime.comm import DistContext
from partialfc.runtime.platform import cpu_count


def check_versions(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Report the versions of all ranks; a rank that differs from rank 0 is a problem."""
    own = runs_with.collect_versions(dist_ctx.device)
    gathered = comm.all_gather_object((socket.gethostname(), own), dist_ctx.host_group)
    (first_host, first), *others = gathered
    problems = [
        f"rank {rank} on {host} has {_format_differences(found, first)}; rank 0 on {first_host} has {_format_differences(first, found)}"
        for rank, (host, found) in enumerate(others, start=1)
        if found != first
    ]
    return CheckResult([", ".join(f"{name} {version}" for name, version in first.items())], problems)


def check_devices(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Report the device of every rank; two ranks on one GPU are a problem."""
    own = (socket.gethostname(), _describe_rank_device(dist_ctx), _describe_host())
    gathered = comm.all_gather_object(own, dist_ctx.host_group)
    lines = []
    for host in dict.fromkeys(it[0] for it in gathered):
        here = [it for it in gathered if it[0] == host]
        kinds = ", ".join(dict.fromkeys(device for _, (_, device), _ in here))
        lines.append(f"{host}: {len(here)} rank(s) on {kinds}; {here[0][2]}")
    uses = [(host, name) for host, (name, _), _ in gathered]
    shared = sorted({it for it in uses if uses.count(it) > 1 and it[1].startswith("cuda")})
    return CheckResult(
        lines, [f"several ranks on {name} of {host}; expected one each" for host, name in shared]
    )


def _describe_rank_device(dist_ctx: DistContext) -> tuple[str, str]:
    """Return the index and the name of this rank's device."""
    name = str(dist_ctx.device) if dist_ctx.device.type == "cuda" else "cpu"
    return name, runs_with.describe_device(dist_ctx.device)


def _describe_host() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu_count()} cores, {memory:.0f} GiB"


def _format_differences(found: Mapping[str, str], other: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items() if other.get(name) != version)
