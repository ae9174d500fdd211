"""Check of the network: duration of each collective of a step, and the network interface in use."""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import torch

from partialfc.config import Config
from partialfc.doctor.result import CheckResult
from partialfc.runtime import comm
from partialfc.runtime.comm import DistContext

_REPEATS = 10
_BUCKET_BYTES = 25 << 20  # bytes per gradient bucket of the backbone
_SIOCGIFADDR = 0x8915  # ioctl: address of an interface


def check_network(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Report the network interface of each machine, and the duration of each collective on the slowest rank."""
    if dist_ctx.world_size == 1:
        return CheckResult(["one rank: no communication"])
    cards = dict(comm.all_gather_object((socket.gethostname(), _network_interface()), dist_ctx.host_group))
    lines = [f"{host} by {card}" for host, card in cards.items()]
    batch, width = config.train.global_batch_size, config.backbone.embedding_size
    share, others = batch // dist_ctx.world_size, (dist_ctx.world_size - 1) / dist_ctx.world_size
    local = torch.zeros(share, width, device=dist_ctx.device, requires_grad=True)
    sums = torch.zeros(2 * batch, dtype=torch.float64, device=dist_ctx.device)
    bucket = torch.zeros(_BUCKET_BYTES // 4, device=dist_ctx.device)

    def there_and_back() -> None:
        rows, _ = comm.all_gather_with_grad(local, None, dist_ctx.group)
        rows.backward(torch.zeros_like(rows))

    for name, call, sent in (
        (
            f"embeddings gathered, gradients scattered, {batch} x {width}",
            there_and_back,
            8 * others * batch * width,
        ),
        (
            f"softmax, {2 * batch} numbers",
            lambda: comm.all_reduce_sum_(sums, dist_ctx.group),
            2 * others * sums.nbytes,
        ),
        (
            f"{_BUCKET_BYTES >> 20} MiB of gradients",
            lambda: comm.all_reduce_sum_(bucket, dist_ctx.group),
            2 * others * _BUCKET_BYTES,
        ),
    ):
        seconds = _time_slowest_rank(call, dist_ctx)
        lines.append(f"{name}: {1000 * seconds:.2f} ms, {sent / seconds / 1e9:.2f} GB/s from each rank")
    return CheckResult(lines)


def _time_slowest_rank(function: Callable[[], object], dist_ctx: DistContext) -> float:
    """Return the seconds per call, measured on the slowest rank."""
    for repeats in (2, _REPEATS):  # the first two calls are warm-up
        comm.barrier(dist_ctx.host_group)
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        if dist_ctx.device.type == "cuda":
            torch.cuda.synchronize(dist_ctx.device)
        taken = (time.perf_counter() - began) / repeats
    return max(comm.all_gather_object(taken, dist_ctx.host_group))


def _network_interface() -> str:
    """Return the interface by which this machine reaches rank 0, and its speed if known."""
    chosen = os.environ.get("NCCL_SOCKET_IFNAME") or os.environ.get("GLOO_SOCKET_IFNAME")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((os.environ.get("MASTER_ADDR", "localhost"), 9))  # sends nothing
        address = one.getsockname()[0]
        names = [name for _, name in socket.if_nameindex() if _interface_address(one, name) == address]
    name = chosen or next(iter(names), f"the interface of {address}")
    try:
        speed = f", {int(Path('/sys/class/net', name, 'speed').read_text()) / 1000:g} Gbit/s"
    except (OSError, ValueError):
        speed = ""
    fabric = Path("/sys/class/infiniband")
    cards = sorted(it.name for it in fabric.iterdir()) if fabric.is_dir() else []
    return f"{name}{speed}" + (f"; InfiniBand {', '.join(cards)}" if cards else "")


def _interface_address(one: socket.socket, name: str) -> str | None:
    try:
        found = fcntl.ioctl(one, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # it has no address
        return None
    return socket.inet_ntoa(found[20:24])
