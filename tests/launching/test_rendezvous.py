"""Machines that do not join, endpoints that do not answer, and host names that do not resolve."""

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from helpers.running import short_recipe

from partialfc.errors import InputError
from partialfc.launching import local_ranks, rendezvous
from partialfc.launching.local_ranks import launch_ranks
from partialfc.launching.rendezvous import ClusterSpec, create_rendezvous
from partialfc.runtime.exit_codes import EXIT_RANK_LOST

CLUSTER = ClusterSpec(nodes=2, endpoint="localhost:0", run_id="mine", ranks_per_node=1, join_timeout=2)


def test_a_missing_machine_is_reported_until_the_timeout(monkeypatch, capfd):
    monkeypatch.setattr(rendezvous, "_REPORT_INTERVAL", 0.3)
    handler = create_rendezvous(CLUSTER, 0)
    try:
        with pytest.raises(
            InputError, match=r"rendezvous localhost:0: 1 of 2 machines joined with id mine within 2 s"
        ):
            handler.next_rendezvous()
    finally:
        handler.shutdown()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) > 1
    assert set(lines) == {"waiting for machines: 1 of 2 have joined localhost:0 with id mine"}


def test_two_machines_join():
    with socket.create_server(("localhost", 0)) as server:
        endpoint = f"localhost:{server.getsockname()[1]}"
    cluster = replace(CLUSTER, endpoint=endpoint, join_timeout=60)
    handlers = [create_rendezvous(cluster, 0) for _ in range(2)]
    found = []
    threads = [threading.Thread(target=lambda it=it: found.append(it.next_rendezvous())) for it in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for handler in handlers:
        handler.shutdown()
    assert sorted(it.rank for it in found) == [0, 1] and {it.world_size for it in found} == {2}


def test_an_endpoint_that_does_not_resolve_is_refused():
    with pytest.raises(InputError, match=r"rendezvous nowhere.invalid:1: 0 of 2 machines joined .*: .+"):
        create_rendezvous(replace(CLUSTER, endpoint="nowhere.invalid:1", join_timeout=0.1), 0)


def test_a_rendezvous_that_others_closed_ends_in_one_line(monkeypatch, capfd):
    """As for a machine too many, once the others have finished."""
    monkeypatch.setattr(local_ranks._Agent, "run", lambda agent: None)
    with mock.patch.dict(os.environ):
        assert launch_ranks(["-c", "pass"], replace(CLUSTER, nodes=1), max_restarts=0) == EXIT_RANK_LOST
    (line,) = capfd.readouterr().err.splitlines()
    assert "ended before this one joined" in line


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return short_recipe(tmp_path)


def test_a_host_name_that_does_not_resolve_is_not_needed_on_one_machine(recipe):
    script = 'hostname nowhere && exec "$@"'
    command = [
        "unshare",
        "--uts",
        "bash",
        "-c",
        script,
        "-",
        sys.executable,
        "-m",
        "partialfc",
        "train",
        recipe,
    ]
    if subprocess.run([*command[:2], "hostname", "nowhere"], capture_output=True, check=False).returncode:
        pytest.skip("cannot change the host name here: root is required")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "on 2 rank(s) of nowhere" in done.stdout


@pytest.mark.kills
def test_a_signal_ends_a_launcher_that_waits_for_an_endpoint_in_native_code(recipe):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "partialfc", "train", recipe, "--nodes", "2", "--endpoint", endpoint]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                with silent.accept()[0]:
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(10) == 75
                assert "stopped by SIGTERM with nothing to save" in process.stderr.read()
            finally:
                process.kill()
