"""Rendezvous of the launchers of all machines, by torch's elastic c10d backend."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch.distributed import Store
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend, create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from typing_extensions import override

from partialfc.errors import InputError
from partialfc.launching.addresses import address_for_others, host_name_is_local_only, is_this_machine

T = TypeVar("T")

_REPORT_INTERVAL = 10  # seconds between two lines about machines that have not joined
_PROBE_INTERVAL = 1.0  # seconds between two attempts to connect
_READ_TIMEOUT = 60  # seconds for the endpoint to answer
_SHUTDOWN_TIMEOUT = 10  # seconds for the endpoint to answer at the end
_DEFAULT_PORT = 29400  # of torchrun


@dataclass(frozen=True)
class ClusterSpec:
    """Nodes of a run; each runs its own launcher."""

    nodes: int
    endpoint: str  # host:port of the rendezvous
    run_id: str  # of the rendezvous
    ranks_per_node: int
    join_timeout: float  # seconds for all nodes to join

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Host and port of the rendezvous."""
        return parse_rendezvous_endpoint(self.endpoint, _DEFAULT_PORT)

    @property
    def local_address(self) -> str | None:
        """Address of this machine for its ranks; None: its host name, which must resolve on the other machines."""
        return "localhost" if self.nodes == 1 else address_for_others(*self.host_and_port)


class LauncherRendezvous(DynamicRendezvousHandler):
    """Rendezvous that reports every ten seconds how many machines have joined."""

    cluster: ClusterSpec
    counter: Store  # counts the launchers that have joined

    @override
    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all machines.

        Returns:
            Rank of this launcher, and the store of the run.

        Raises:
            InputError: If a machine does not join in time.
        """
        self._count_launchers(1)
        try:
            with _report_waiting(self._count_launchers, self.cluster):
                return _run_in_thread(super().next_rendezvous)
        except RendezvousTimeoutError:
            raise InputError(_timeout_message(self._count_launchers(), self.cluster)) from None

    @override
    def num_nodes_waiting(self) -> int:
        """Return 0: the machines of a run do not change. torch would ask the store, which may never answer."""
        return 0

    def try_shutdown(self) -> bool:
        """Leave the rendezvous; return False if the endpoint does not answer."""
        done = threading.Event()

        def leave() -> None:
            try:
                self.shutdown()
            finally:
                done.set()

        threading.Thread(target=leave, daemon=True).start()
        return done.wait(_SHUTDOWN_TIMEOUT)

    def _count_launchers(self, joining: int = 0) -> int:
        return int(self.counter.add(f"{self.get_run_id()} launchers", joining))


def create_rendezvous(cluster: ClusterSpec, attempt: int) -> LauncherRendezvous:
    """Connect to the endpoint.

    Returns:
        Rendezvous of an attempt to run all ranks.

    Raises:
        InputError: If the endpoint cannot be reached in time.
    """
    deadline = time.monotonic() + cluster.join_timeout
    run_id = f"{cluster.run_id}.{attempt}"
    _wait_for_endpoint(cluster, deadline)
    try:
        backend, store = _run_in_thread(lambda: _connect(cluster, run_id))
    except RendezvousConnectionError:
        raise InputError(f"{_timeout_message(0, cluster)}; another program may use that port") from None
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    rendezvous = LauncherRendezvous.from_backend(
        run_id,
        store,
        backend,
        cluster.nodes,
        cluster.nodes,
        cluster.local_address,
        RendezvousTimeout(join=left),
    )
    rendezvous.cluster = cluster
    rendezvous.counter = store
    return rendezvous


def _connect(cluster: ClusterSpec, run_id: str) -> tuple[C10dRendezvousBackend, Store]:
    """Connect to the endpoint, or host it if it is on this machine and no other launcher does."""
    for is_host in _hosting_options(cluster):
        parameters = RendezvousParameters(
            "c10d",
            cluster.endpoint,
            run_id,
            cluster.nodes,
            cluster.nodes,
            cluster.local_address,
            read_timeout=round(max(1.0, min(_READ_TIMEOUT, cluster.join_timeout))),
            is_host=is_host,
        )
        try:
            return create_backend(parameters)
        except RendezvousConnectionError as error:
            failure = error
    raise failure


def _hosting_options(cluster: ClusterSpec) -> list[bool | None]:
    """Return whether to host the endpoint; None if torch can find out from the host name."""
    if cluster.nodes == 1 or not host_name_is_local_only():
        return [None]
    return [True, False] if is_this_machine(cluster.host_and_port[0]) else [False]


def _wait_for_endpoint(cluster: ClusterSpec, deadline: float) -> None:
    """Wait until the endpoint accepts connections, unless it is on this machine.

    torch would wait in native code, where signals have no effect.

    Raises:
        InputError: If it cannot be reached in time.
    """
    host, port = cluster.host_and_port
    if cluster.nodes == 1 or is_this_machine(host):
        return
    with _report_waiting(lambda: 0, cluster):
        while True:
            try:
                socket.create_connection((host, port), timeout=_PROBE_INTERVAL).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise InputError(f"{_timeout_message(0, cluster)}: {error.strerror or error}") from None
                time.sleep(_PROBE_INTERVAL)


def _run_in_thread(function: Callable[[], T]) -> T:
    """Run a function that waits in native code, so that this thread still handles signals."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not result.done():
        time.sleep(0.05)
    return result.result()


def _timeout_message(joined: int, cluster: ClusterSpec) -> str:
    return (
        f"rendezvous {cluster.endpoint}: {joined} of {cluster.nodes} machines joined with id {cluster.run_id} "
        f"within {cluster.join_timeout:.0f} s (launch.join_timeout); expected the same --endpoint and --id on all machines"
    )


@contextmanager
def _report_waiting(joined: Callable[[], int], cluster: ClusterSpec) -> Iterator[None]:
    """Print a line every ten seconds during the block."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(_REPORT_INTERVAL):
            found = f"{joined()} of {cluster.nodes} have joined {cluster.endpoint} with id {cluster.run_id}"
            print(f"waiting for machines: {found}", file=sys.stderr, flush=True)

    threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        over.set()
