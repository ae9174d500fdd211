"""Machines with little shared memory, few processes or files, and unusual temporary folders."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.running import short_recipe

from partialfc.__main__ import main
from partialfc.runtime import memory_limits
from partialfc.runtime.exit_codes import exit_on_input_error


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return short_recipe(tmp_path, num_workers=1)


def train(recipe: Path, script: str, *prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run training after a shell script, in a process of the command `prefix`."""
    command = [
        *prefix,
        "bash",
        "-c",
        f'{script} && exec "$@"',
        "-",
        sys.executable,
        "-m",
        "partialfc",
        "train",
    ]
    return subprocess.run(
        [*command, recipe],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | environment,
    )


def test_small_shared_memory_is_refused_before_the_first_step(recipe):
    script, prefix = "mount -t tmpfs -o size=64k none /dev/shm", ["unshare", "--mount"]
    if subprocess.run([*prefix, "bash", "-c", script], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here: root is required")
    done = train(recipe, script, *prefix)
    needed = "2 ranks x 1 workers x 4 buffers of 6 images"
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: /dev/shm: 0.1 MiB free; expected 0.1 MiB for " + needed)


def test_few_open_files_are_refused(recipe):
    done = train(recipe, "ulimit -n 20")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "too many open files; a process may open 20 files. Raise the limit" in done.stderr


def test_a_temporary_folder_too_long_for_sockets(recipe, tmp_path):
    """Workers would wait for connections forever."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    done = train(recipe, "true", TMPDIR=str(folder))
    assert done.returncode == 0 and "finished at step 3" in done.stdout, done.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", ["abc", "0", "-3", "100000", "2,x"])
def test_an_invalid_number_of_threads_is_refused(monkeypatch, capsys, number):
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    with pytest.raises(SystemExit) as ended:
        main(["recipes"])
    assert ended.value.code == 2
    said = f"error: OMP_NUM_THREADS: expected an integer from 1 to 4096, got {number}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread; the user may have "),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "; the user may have "),
        (OSError(errno.EMFILE, "Too many open files", "a.rec"), "a.rec'; a process may open "),
    ],
)
def test_a_limit_of_the_system_is_named(capsys, error, message):
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise RuntimeError("an error that it causes") from error
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="our own"), exit_on_input_error():
        raise RuntimeError("our own")


def test_the_limit_of_a_cgroup_is_named(monkeypatch, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "job/memory.max").write_text(f"{4 << 30}\n")
    (tmp_path / "job/memory.current").write_text(f"{1 << 30}\n")
    monkeypatch.setattr(memory_limits, "_CGROUPS", tmp_path)
    read_text = Path.read_text
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    monkeypatch.setattr(
        Path, "read_text", lambda it: read_text(tmp_path / "cgroup" if it.name == "cgroup" else it)
    )
    assert "cgroup limit 4.0 GiB, 1.0 GiB used now" in memory_limits.explain_signal(9)
    assert memory_limits.explain_signal(11) == "SIGSEGV"
