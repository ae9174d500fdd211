"""A run that is stopped by signals, wherever they arrive."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.running import children, recipe_in, started

pytestmark = pytest.mark.kills


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Its run goes on from one test to the next."""
    return recipe_in(tmp_path_factory.mktemp("run"))


def newest_step(recipe: Path) -> int:
    return int((recipe.parent / "output/checkpoints/latest").resolve().name.removeprefix("step_"))


def last_logged(recipe: Path) -> int:
    lines = (recipe.parent / "output/metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["step"] for line in lines)


@pytest.mark.parametrize(
    ("name", "target", "ranks"),
    [
        ("SIGTERM", "launcher", 2),
        ("SIGINT", "launcher", 1),
        ("SIGHUP", "launcher", 2),
        ("SIGUSR1", "launcher", 1),
        ("SIGTERM", 1, 2),
        ("SIGUSR1", 0, 2),
        ("SIGINT", 0, 1),
        ("SIGHUP", 1, 2),
        ("SIGTERM", "every process", 2),  # as a scheduler may send it, data workers included
    ],
)
def test_a_signal_saves_the_run_and_ends_it_in_one_line(recipe, name, target, ranks):
    """Wherever it arrives; the step under way is finished, and nothing of it lost."""
    with started(recipe, "--ranks", ranks) as running:
        if target == "every process":
            for pid in running.ranks:
                os.killpg(pid, getattr(signal, name))
        else:
            pid = running.process.pid if target == "launcher" else running.ranks[target]
            os.kill(pid, getattr(signal, name))
        code, out, err = running.ended()
    told = re.fullmatch(rf"stopped by {name} at step (\d+) of 100000; checkpoint saved", out[-1])
    assert code == 75 and not err and told, (code, out, err)
    assert newest_step(recipe) == int(told[1]) >= last_logged(recipe)
    assert not list(running.temporary.iterdir())


def test_a_second_interrupt_ends_it_at_once(recipe):
    with started(recipe) as running:
        for pid in running.ranks:  # so that the first has no time to save
            os.kill(pid, signal.SIGSTOP)
        for _ in range(2):
            os.kill(running.process.pid, signal.SIGINT)
            time.sleep(0.2)
        code, _, err = running.ended()
    assert code == 130 and err == "stopped by SIGINT a second time, without saving\n"
    assert not any(Path(f"/proc/{pid}").exists() for pid in running.ranks)


def test_before_the_first_step_there_is_nothing_to_save(recipe):
    command = [sys.executable, "-m", "partialfc.train", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while b"SIGTERM" not in handled(process.pid):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (75, "stopped by SIGTERM with nothing to save\n")


@pytest.mark.parametrize("ranks", [1, 2])
def test_before_the_first_step_one_rank_says_so(recipe, ranks):
    """Where the ranks listen, and have a launcher."""
    command = [sys.executable, "-m", "partialfc", "train", str(recipe), "--ranks", str(ranks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(found := children(process.pid)) < ranks or not all(map(handled, found)):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=150)
    told = [
        line for line in err.splitlines() if "Gloo" not in line
    ]  # which misses a rank as it meets the others
    # The first rank may be inside a library, waiting for the other, and hear nothing until it is ended.
    ways = (
        ["stopped by SIGTERM with nothing to save"],
        ["stopped by SIGTERM; rank 0 did not exit and was killed"],
    )
    assert process.returncode == 75 and told in ways, (process.returncode, err)


def test_while_the_ranks_start_there_is_nothing_to_save(recipe):
    """A signal that comes before a rank can listen."""
    command = [sys.executable, "-m", "partialfc", "train", str(recipe), "--ranks", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(children(process.pid)) < 2:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (75, "stopped by SIGTERM with nothing to save\n")


SLOW_TORCH = """
import sys, time
class Slow:
    def find_spec(self, name, *more):
        if name == "torch":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("command", ["train", "sweep", "doctor"])
def test_while_modules_are_imported_there_is_nothing_to_save(recipe, tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text(SLOW_TORCH)
    arguments = [sys.executable, "-m", "partialfc", command, str(recipe)]
    arguments += ["--out", str(tmp_path / "out"), "seed=0..1"] if command == "sweep" else []
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
        assert process.stderr.read() == "stopped by SIGTERM with nothing to save\n"


@pytest.mark.parametrize("kind", ["rank", "launcher"])
def test_a_signal_within_a_callback_is_not_lost(kind):
    """Where Python drops exceptions, and libraries abort on them."""
    source = {
        "rank": "StopRequest().install()",
        "launcher": "_RankProcesses().forward_signals()",
    }[kind]
    program = f"""
import os, signal, weakref
from partialfc.launching.local_ranks import _RankProcesses
from partialfc.runtime.process.signals import StopRequest

class Gone: pass

with {source}:
    gone = Gone()
    reference = weakref.ref(gone, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del gone
    print("went on")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (75, "")
    assert ended.stderr == "stopped by SIGTERM with nothing to save\n"


def handled(pid: int) -> bytes:
    """SIGTERM where the process has a handler for it."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return b"SIGTERM" if mask and int(mask[1], 16) >> (signal.SIGTERM - 1) & 1 else b""


def test_what_is_ignored_stays_ignored(recipe):
    """As under nohup."""
    command = [
        "nohup",
        sys.executable,
        "-m",
        "partialfc",
        "train",
        str(recipe),
        "--ranks",
        "1",
        "train.length=150",
    ]
    output = recipe.parent / "nohup"
    with subprocess.Popen(
        [*command, f"output={output}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 5/"):
                process.send_signal(signal.SIGHUP)
        process.wait(60)
    assert process.returncode == 0 and (output / "summary.json").exists()
