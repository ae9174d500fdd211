"""How fast the ranks reach each other: each collective of a step, and the network card it goes through."""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import torch

from partialfc.config import Config
from partialfc.doctor.result import Finding
from partialfc.runtime import comm
from partialfc.runtime.comm import Ranks

_REPEATS = 10
_BUCKET = 25 << 20  # bytes of the backbone's gradients that are sent at once
_SIOCGIFADDR = 0x8915  # asks for the address of an interface


def network(config: Config, ranks: Ranks) -> Finding:
    """The card of each machine, and what each collective of a step takes the slowest rank."""
    if ranks.size == 1:
        return Finding(["one rank: nothing is sent"])
    cards = dict(comm.of_all_ranks((socket.gethostname(), _card()), ranks.host))
    lines = [f"{host} by {card}" for host, card in cards.items()]
    batch, width = config.train.global_batch_size, config.backbone.embedding_size
    share, others = batch // ranks.size, (ranks.size - 1) / ranks.size
    local = torch.zeros(share, width, device=ranks.device, requires_grad=True)
    sums = torch.zeros(2 * batch, dtype=torch.float64, device=ranks.device)
    bucket = torch.zeros(_BUCKET // 4, device=ranks.device)

    def there_and_back() -> None:
        rows, _ = comm.gather_with_gradient(local, None, ranks.group)
        rows.backward(torch.zeros_like(rows))

    for name, call, sent in (
        (
            f"embeddings gathered, gradients scattered, {batch} x {width}",
            there_and_back,
            8 * others * batch * width,
        ),
        (f"softmax, {2 * batch} numbers", lambda: comm.sum_(sums, ranks.group), 2 * others * sums.nbytes),
        (f"{_BUCKET >> 20} MiB of gradients", lambda: comm.sum_(bucket, ranks.group), 2 * others * _BUCKET),
    ):
        seconds = _seconds(call, ranks)
        lines.append(f"{name}: {1000 * seconds:.2f} ms, {sent / seconds / 1e9:.2f} GB/s from each rank")
    return Finding(lines)


def _seconds(call: Callable[[], object], ranks: Ranks) -> float:
    """Of one call, on the slowest rank."""
    for repeats in (2, _REPEATS):  # the first two only bring everything up
        comm.barrier(ranks.host)
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        taken = (time.perf_counter() - began) / repeats
    return max(comm.of_all_ranks(taken, ranks.host))


def _card() -> str:
    """The interface by which this machine reaches the first rank's, and its speed where that is known."""
    chosen = os.environ.get("NCCL_SOCKET_IFNAME") or os.environ.get("GLOO_SOCKET_IFNAME")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((os.environ.get("MASTER_ADDR", "localhost"), 9))  # sends nothing
        address = one.getsockname()[0]
        names = [name for _, name in socket.if_nameindex() if _address(one, name) == address]
    name = chosen or next(iter(names), f"the interface of {address}")
    try:
        speed = f", {int(Path('/sys/class/net', name, 'speed').read_text()) / 1000:g} Gbit/s"
    except (OSError, ValueError):
        speed = ""
    fabric = Path("/sys/class/infiniband")
    cards = sorted(it.name for it in fabric.iterdir()) if fabric.is_dir() else []
    return f"{name}{speed}" + (f"; InfiniBand {', '.join(cards)}" if cards else "")


def _address(one: socket.socket, name: str) -> str | None:
    try:
        found = fcntl.ioctl(one, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # it has none
        return None
    return socket.inet_ntoa(found[20:24])
