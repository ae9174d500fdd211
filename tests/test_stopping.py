"""A run that is stopped, or loses a process, by signals of the system; and two runs in one folder."""

import getpass
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from faces import write_pack, write_pairs

from partialfc.runtime import comm
from partialfc.runtime.process.occupancy import occupied
from partialfc.runtime.process.watchdog import Entry, late_ranks

pytestmark = pytest.mark.kills

RECIPE = """
data: {path: PACK, workers: 1}
backbone: {width: 4, depths: [1, 1], input_size: 32, embedding: 16}
train: {length: 100000, batch: 12}
head: {sample_rate: 0.5}
report: {every: 5}
device: cpu
output: OUTPUT
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Its run goes on from one test to the next."""
    folder = tmp_path_factory.mktemp("stopping")
    write_pack(folder / "pack", 20, 4)
    write_pairs(folder / "pack/some.bin")
    text = RECIPE.replace("PACK", str(folder / "pack")).replace("OUTPUT", str(folder / "output"))
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


class Running:
    """A launcher whose ranks are at their steps."""

    def __init__(self, process: subprocess.Popen[str], temporary: Path) -> None:
        self.process, self.temporary = process, temporary
        self.ranks = [pid for pid in children(process.pid) if "partialfc.train" in command_of(pid)]

    def ended(self, seconds: float = 60) -> tuple[int, list[str], str]:
        """Exit code, the lines on stdout since, and stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out.splitlines(), err


@contextmanager
def started(recipe: Path, *arguments: object, lines: int = 3) -> Iterator[Running]:
    temporary = recipe.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "partialfc.launch", str(recipe), *map(str, arguments)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=listen,
    ) as process:
        try:
            for line in process.stdout:
                lines -= line.startswith("step ") and "loss" in line
                if not lines:
                    break
            yield Running(process, temporary)
        finally:
            process.kill()


def listen() -> None:
    """Signals that these tests are run without, as in the background of a shell, or under nohup, are heard."""
    for one in (signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_DFL)


def test_what_is_ignored_stays_ignored(recipe):
    """As under nohup."""
    command = [
        "nohup",
        sys.executable,
        "-m",
        "partialfc.launch",
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


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


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
    ],
)
def test_a_signal_saves_the_run_and_ends_it_in_one_line(recipe, name, target, ranks):
    """Wherever it arrives; the step under way is finished, and nothing of it lost."""
    with started(recipe, "--ranks", ranks) as running:
        pid = running.process.pid if target == "launcher" else running.ranks[target]
        os.kill(pid, getattr(signal, name))
        code, out, err = running.ended()
    told = re.fullmatch(rf"stopped by {name} at step (\d+) of 100000: saved", out[-1])
    assert code == 75 and not err and told, (code, out, err)
    assert newest_step(recipe) == int(told[1]) >= last_logged(recipe)
    left = {path.name for path in running.temporary.iterdir()}
    assert left <= {f"torchinductor_{getpass.getuser()}"}  # a cache of torch's


def test_a_second_interrupt_ends_it_at_once(recipe):
    with started(recipe) as running:
        for pid in running.ranks:  # so that the first has no time to save
            os.kill(pid, signal.SIGSTOP)
        for _ in range(2):
            os.kill(running.process.pid, signal.SIGINT)
            time.sleep(0.2)
        code, _, err = running.ended(20)
    assert code == 130 and err == "stopped by SIGINT again, without waiting for the run to be saved\n"
    assert not any(Path(f"/proc/{pid}").exists() for pid in running.ranks)


def test_before_the_first_step_there_is_nothing_to_save(recipe):
    command = [sys.executable, "-m", "partialfc.train", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while b"SIGTERM" not in handled(process.pid):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75 and err == "stopped by SIGTERM with nothing to save\n"


def test_while_the_ranks_start_there_is_nothing_to_save(recipe):
    """A signal that comes before a rank can listen."""
    command = [sys.executable, "-m", "partialfc.launch", str(recipe), "--ranks", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(children(process.pid)) < 2:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75 and err == "stopped by SIGTERM with nothing to save\n"


def handled(pid: int) -> bytes:
    """SIGTERM where the process has a handler for it."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return b"SIGTERM" if mask and int(mask[1], 16) >> (signal.SIGTERM - 1) & 1 else b""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_ends_all(recipe, victim):
    with started(recipe, "--ranks", 2) as running:
        os.kill(running.ranks[victim], signal.SIGKILL)
        code, _, err = running.ended(30)
    assert code == 128 + signal.SIGKILL
    named = rf"rank {victim} on \S+ was killed by SIGKILL \(out of memory\?\)\n"
    assert re.fullmatch(rf"(error: a rank was lost, and with it the run\n)?{named}", err), err


def test_ranks_end_with_their_launcher(recipe):
    with started(recipe, "--ranks", 2) as running:
        running.process.kill()
        code, _, err = running.ended(30)
    assert code == -signal.SIGKILL and not err
    assert len(running.ranks) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in running.ranks)


def test_all_ranks_are_started_again_where_one_dies(recipe):
    """From the last checkpoint; not after a signal that asks for the end."""
    with started(recipe, "--ranks", 2, "launch.restarts=1") as running:
        os.kill(running.ranks[1], signal.SIGKILL)
        going_on = 0
        for line in running.process.stdout:
            going_on += line.startswith("going on from")
            if going_on and line.startswith("step "):
                break
        running.process.send_signal(signal.SIGTERM)
        code, out, err = running.ended()
    assert code == 75 and out[-1].startswith("stopped by SIGTERM") and going_on == 1
    assert "starting all ranks again, 1 of 1 times at most\n" in err


def test_a_second_run_in_one_folder_is_refused(recipe):
    with started(recipe, "--ranks", 1) as running:
        before = (recipe.parent / "output/metrics.jsonl").read_bytes()
        second = subprocess.run(
            [sys.executable, "-m", "partialfc.train", str(recipe)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (recipe.parent / "output/metrics.jsonl").read_bytes().startswith(before)
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.ended()[0] == 75
    assert second.returncode == 2 and not second.stdout
    holder = rf"process {running.ranks[0]} on \S+ is at work there; wanted another `output`, or to wait"
    assert re.search(holder, second.stderr) and second.stderr.count("\n") == 1, second.stderr


def seen(folder: Path) -> str:
    """What a rank says of a folder of which the second rank sees another, as if on a disk of its own."""
    ranks = comm.ranks_of(torch.device("cpu"))
    mine = folder / ("other" if ranks.rank == 1 else "one")
    mine.mkdir(exist_ok=True)
    try:
        with occupied(mine, ranks):
            return "seen"
    except comm.CollectiveInputError as error:
        return str(error)


def test_a_folder_that_is_not_shared_is_refused(ranks, tmp_path):
    told = ranks.run(2, seen, tmp_path)
    assert len(set(told)) == 1 and re.search(r"rank 1 on \S+ does not see what rank 0 wrote there", told[0])


def test_a_rank_that_stands_still_is_named_and_ends_all(recipe):
    with started(recipe, "--ranks", 2, "launch.timeout=2 seconds") as running:
        os.kill(running.ranks[1], signal.SIGSTOP)
        code, _, err = running.ended(60)
    assert code == 4
    assert re.fullmatch(
        r"error: rank 1 on \S+ has not moved since step \d+, in .*; its process does not run\n", err
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in running.ranks)


@pytest.mark.parametrize(
    ("before", "now", "late"),
    [
        # the third process was stopped: it writes no more
        ([(1, 5, "head"), (1, 5, "data, communication"), (1, 5, "head, communication")],
         [(4, 5, "head, communication"), (4, 5, "data, communication"), (1, 5, "head, communication")], {2}),
        # the second reads its images, for which the others wait
        ([(1, 5, "data, communication"), (1, 4, "data"), (1, 5, "data, communication")],
         [(4, 5, "data, communication"), (4, 4, "data"), (4, 5, "data, communication")], {1}),
        # all wait for each other in the same step
        ([(1, 5, "head, communication")] * 2, [(4, 5, "head, communication")] * 2, {0, 1}),
    ],
)  # fmt: skip
def test_who_is_late(before, now, late):
    entries = [{rank: Entry(*it, "n1") for rank, it in enumerate(written)} for written in (before, now)]
    assert late_ranks(*entries).keys() == late


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a file system here, which wants root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_neither_the_run_nor_the_checkpoint_before(recipe, small_disk):
    """Neither in a save nor in the log; where there is room again, the run is saved again."""
    arguments = ["--ranks", 2, f"output={small_disk / 'run'}", "checkpoint.every=10"]
    with started(recipe, *arguments, lines=4) as running:
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        said = []
        for line in running.process.stdout:
            said.append(line)
            if any("not saved" in it for it in said) and any("goes on without" in it for it in said):
                break
        before = (small_disk / "run/checkpoints/latest").resolve()
        filler.unlink()
        for _ in running.process.stdout:
            if (small_disk / "run/checkpoints/latest").resolve() != before:
                break
        os.kill(running.process.pid, signal.SIGTERM)
        code, out, err = running.ended()
    refused = next(it for it in said if "not saved" in it)
    assert re.search(
        r"step \d+ is not saved: .*/disk/run/.*: No space left on device: the disk is full; training goes on",
        refused,
    )
    assert any(
        re.search(r"/disk/run.*: No space left on device; training goes on without", it) for it in said
    )
    assert code == 75 and out[-1].endswith(": saved") and not err, (code, out[-3:], err)
    with started(recipe, *arguments) as running:
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.ended()[0] == 75
