"""Two network namespaces as two machines, whose host names do not resolve: a run, a missing machine, and lost ones."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faces import write_pack

RECIPE = """
data: {path: PACK, num_workers: 0}
backbone: {name: iresnet_tiny, width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 30, global_batch_size: 8}
log: {every: 1, loggers: []}
checkpoint: {every: 10}
launch: {join_timeout: 60 seconds, step_timeout: 4 seconds}
device: cpu
output: OUTPUT
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def can_create_namespaces() -> bool:
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    name = f"pfc{os.getpid()}t"
    if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
        return False
    ip("netns", "del", name)
    return subprocess.run(["unshare", "--uts", "true"], check=False).returncode == 0


pytestmark = [
    pytest.mark.kills,
    pytest.mark.skipif(not can_create_namespaces(), reason="needs root and network namespaces"),
]


class Machine:
    """A namespace with an address and a host name that does not resolve."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self._folder = number, folder
        self.namespace, self.link = f"pfc{os.getpid()}n{number}", f"pfc{os.getpid() % 10**6}v{number}"
        self.host, self.address = f"machine{number}.invalid", f"10.77.0.{number}"
        self.etc = Path("/etc/netns", self.namespace)  # bound over /etc

    def resolve(self, names: dict[str, str]) -> None:
        """Let it resolve these names."""
        self.etc.mkdir(parents=True)
        (self.etc / "hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))

    def launch(self, *settings: str, endpoint: str = "10.77.0.1") -> subprocess.Popen[str]:
        train = ["train", str(self._folder / "recipe.yaml"), "--nodes=2", "--ranks=1", "--id=x"]
        return subprocess.Popen(
            [
                *("ip", "netns", "exec", self.namespace),
                *("unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', self.host),
                *(sys.executable, "-m", "partialfc", *train, f"--endpoint={endpoint}:29500", *settings),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def pids(self) -> list[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], check=True, capture_output=True, text=True
        )
        return [int(it) for it in listed.stdout.split()]

    def kill_all(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    write_pack(tmp_path / "pack", 6, 4, 32)
    text = RECIPE.replace("PACK", str(tmp_path / "pack")).replace("OUTPUT", str(tmp_path / "output"))
    (tmp_path / "recipe.yaml").write_text(text)
    first, second = Machine(1, tmp_path), Machine(2, tmp_path)
    for machine in (first, second):
        ip("netns", "add", machine.namespace)
    try:
        ip("link", "add", first.link, "type", "veth", "peer", "name", second.link)
        for machine in (first, second):
            ip("link", "set", machine.link, "netns", machine.namespace)
            ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", machine.link)
            for link in (machine.link, "lo"):
                ip("-n", machine.namespace, "link", "set", link, "up")
        yield first, second
    finally:
        for machine in (first, second):
            machine.kill_all()
            ip("netns", "del", machine.namespace)
            shutil.rmtree(machine.etc, ignore_errors=True)


def ends(launchers: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes, and what each printed on stderr apart from warnings of torch."""
    said = [launcher.communicate(timeout=100)[1] for launcher in launchers]
    ours = ["".join(line for line in text.splitlines(True) if not line.startswith("[W")) for text in said]
    return [launcher.returncode for launcher in launchers], ours


def wait_for_checkpoint(folder: Path) -> None:
    limit = time.monotonic() + 60
    while not (folder / "output/checkpoints/latest").exists():
        assert time.monotonic() < limit
        time.sleep(0.2)


def test_names_that_do_not_resolve_are_not_needed(machines, tmp_path):
    codes, errors = ends([it.launch() for it in machines])
    assert codes == [0, 0], errors
    assert (tmp_path / "output/summary.json").exists()


def test_names_that_resolve_to_a_loopback_address_on_their_own_machine(machines):
    """As Debian's do."""
    for machine in machines:
        ip("-n", machine.namespace, "route", "add", "default", "dev", machine.link)
        others = {it.host: it.address for it in machines} | {machine.host: "127.0.1.1"}
        machine.resolve({"localhost": "127.0.0.1"} | others)
    codes, errors = ends([it.launch(endpoint=machines[0].host) for it in machines])
    assert codes == [0, 0], errors


def test_a_machine_that_never_joins(machines):
    codes, (error,) = ends([machines[0].launch("launch.join_timeout=11 seconds")])
    waiting, problem = error.splitlines()
    assert codes == [2] and waiting == "waiting for machines: 1 of 2 have joined 10.77.0.1:29500 with id x"
    assert problem.startswith(
        "error: rendezvous 10.77.0.1:29500: 1 of 2 machines joined with id x within 11 s"
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_a_machine_that_loses_power_ends_the_others(machines, tmp_path, lost):
    launchers = [it.launch("train.length=100000") for it in machines]
    wait_for_checkpoint(tmp_path)
    ip(
        "-n", machines[lost].namespace, "link", "set", machines[lost].link, "down"
    )  # no packet tells of its end
    machines[lost].kill_all()
    began = time.monotonic()
    codes, errors = ends(launchers)
    assert codes[1 - lost] == 4, errors
    assert time.monotonic() - began < 90


def test_a_cut_cable_ends_both_in_a_line_each(machines, tmp_path):
    launchers = [it.launch("train.length=100000") for it in machines]
    wait_for_checkpoint(tmp_path)
    ip("-n", machines[1].namespace, "link", "set", machines[1].link, "down")
    codes, errors = ends(launchers)
    assert codes == [4, 4], errors
    assert all(error.count("\n") == 1 and " stalled at step " in error for error in errors), errors
    assert (tmp_path / "output/checkpoints/latest").exists()
