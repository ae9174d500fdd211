"""Disturb a run again and again, at random moments, and compare its end with that of an undisturbed one."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from helpers.faces import write_pack, write_pairs
from helpers.running import children, command_of

ROOT = Path(__file__).parents[2]
RECIPE = """
data: {path: PACK, num_workers: 1}
backbone: {width: 4, depths: [1, 1], input_size: 32, embedding_size: 16, dropout: 0.2}
head: {sample_rate: 0.5}
loss: {name: elastic_cosface, margin: 0.2, scale: 16, order: paper}
optim: {lr: 0.02, ema_decay: 0.9}
train: {length: 240, global_batch_size: 12, micro_batch_size: 6}
evaluation: {every: 30, batch_size: 16}
checkpoint: {every: 10}
log: {every: 1}
device: cpu
"""


@dataclass(frozen=True)
class Call:
    """Call of a function at which its rank is killed, or the launcher is told to stop."""

    function: str
    last: int  # greatest number of the call
    sent: signal.Signals = signal.SIGKILL


_CHECKPOINT = "partialfc.runtime.checkpoint"
KILLS_IN_A_SAVE = {
    "a kill in a snapshot": Call(f"{_CHECKPOINT}.state_snapshot.StateSnapshot.copy_state", 6),
    "a kill in a write": Call(f"{_CHECKPOINT}.writer.Throttle.__call__", 20),
    "a kill in a digest": Call(f"{_CHECKPOINT}.manager.compute_digest", 2),
    "a kill in a manifest": Call(f"{_CHECKPOINT}.folder.write_manifest", 6),
    "a kill in a publication": Call(f"{_CHECKPOINT}.folder.CheckpointFolder.publish", 6),
    "a kill in a link": Call(f"{_CHECKPOINT}.folder.CheckpointFolder._link", 6),
    "a kill in a removal": Call(f"{_CHECKPOINT}.folder.CheckpointFolder._remove", 6),
}
CALLS = KILLS_IN_A_SAVE | {
    "a kill in a step": Call("partialfc.training.loop.train_step", 60),
    "a kill in a load": Call(f"{_CHECKPOINT}.manager.read_rows_into", 60),
    "a kill in an evaluation": Call("partialfc.training.run.embed_sets", 2),
    "a stop in an evaluation": Call("partialfc.training.run.embed_sets", 2, signal.SIGTERM),
    "a stop in a save": Call(f"{_CHECKPOINT}.writer.Throttle.__call__", 20, signal.SIGTERM),
    "a stop in a load": Call(f"{_CHECKPOINT}.manager.read_rows_into", 20, signal.SIGTERM),
}
KILLS = ("a kill of a rank", "a kill of all ranks", "a kill of the launcher", "a kill of a data worker")
STOPS = ("a stop at the start", "a stop in training")  # SIGTERM to the launcher
FULL_DISK = "a full disk"  # for some steps; then a rank is killed
SITECUSTOMIZE = """
import os, sys
if "partialfc.train" in " ".join(sys.orig_argv):
    import importlib
    path, call, number = os.environ["SIGNAL_IN"].split()
    for parts in range(path.count("."), 0, -1):
        try:
            owner = importlib.import_module(path.rsplit(".", parts)[0])
        except ModuleNotFoundError:
            continue
        names = path.rsplit(".", parts)[1:]
        if hasattr(owner, names[0]):
            break
    for name in names[:-1]:
        owner = getattr(owner, name)
    original, calls = getattr(owner, names[-1]), 0
    def send_first(*arguments, **named):
        global calls
        calls += 1
        if calls == int(call) and number == "9":
            os.kill(os.getpid(), 9)
        elif calls == int(call) and os.environ["RANK"] == "0":
            os.kill(os.getppid(), int(number))
        return original(*arguments, **named)
    setattr(owner, names[-1], send_first)
"""


@dataclass
class DisturbedRuns:
    """folder: for the pack and all runs. ranks: of each run."""

    folder: Path
    ranks: int
    seed: int
    counts: Counter[str] = field(default_factory=Counter)  # events that runs survived

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        write_pack(self.folder / "pack", 20, 6)
        write_pairs(self.folder / "pack/some.bin")
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(RECIPE.replace("PACK", str(self.folder / "pack")))
        (self.folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self._command = [
            *(sys.executable, "-m", "partialfc", "train", "--ranks", str(self.ranks), str(recipe)),
        ]

    def run_undisturbed(self) -> None:
        """Run to the end what all others are compared with."""
        done = self._started("undisturbed", {})
        _, err = done.communicate(timeout=900)
        assert done.returncode == 0, err

    def disturb(self, events: list[str], name: str = "run") -> None:
        """Disturb a run by events of the list, which loses them, until it is empty or the run is done.

        Then compare the run with the undisturbed one, and remove it.
        """
        code = -1
        while events and code != 0:
            event = self._draw.choice(events)
            if "in a load" in event and not (self.folder / name / "checkpoints/latest").exists():
                event = "a stop in training"
            process = self._started(name, self._environment(event))
            self._disturb(process, event)
            out, err = process.communicate(timeout=900)
            code = process.returncode
            if code != 0:
                expected = (75,) if "stop" in event else (-9, 4, 128 + 9)
                assert code in expected, (event, code, out[-500:], err)
                assert "Traceback" not in err, (event, err)
                with suppress(ValueError):
                    events.remove(event)
                self.counts[event] += 1
                print(f"{self.counts.total()}: {event}, {_newest(self.folder / name)}", flush=True)
        if code != 0:
            process = self._started(name, {})
            _, err = process.communicate(timeout=900)
            assert process.returncode == 0, err
        self._compare(name)
        shutil.rmtree(self.folder / name)

    def _environment(self, event: str) -> dict[str, str]:
        if event not in CALLS:
            return {}
        call = CALLS[event]
        number = self._draw.randint(1, call.last)
        return {
            "SIGNAL_IN": f"{call.function} {number} {int(call.sent)}",
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
        }

    def _disturb(self, process: "subprocess.Popen[str]", event: str) -> None:
        if event in KILLS:
            self._kill(process, event)
        elif event in STOPS:
            self._stop(process, event)
        elif event == FULL_DISK:
            self._fill_disk(process)

    def _started(self, name: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
        command = [*self._command, f"output={self.folder / name}"]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def _kill(self, process: "subprocess.Popen[str]", event: str) -> None:
        """Kill processes some steps after the first, wherever the run is then."""
        self._wait_for_steps(process)
        ranks = [pid for pid in children(process.pid) if "partialfc.train" in command_of(pid)]
        if not ranks:  # it has just ended
            return
        workers = [pid for rank in ranks for pid in children(rank) if "spawn_main" in command_of(pid)]
        victims = {
            "a kill of a rank": [self._draw.choice(ranks)],
            "a kill of all ranks": ranks,
            "a kill of the launcher": [process.pid],
            "a kill of a data worker": [self._draw.choice(workers or ranks)],
        }
        for pid in victims[event]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _fill_disk(self, process: "subprocess.Popen[str]") -> None:
        """Fill the disk of `folder`, kill a rank some steps later, and make room again."""
        self._wait_for_steps(process)
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        self._kill(process, "a kill of a rank")
        process.wait(timeout=900)
        filler.unlink()

    def _stop(self, process: "subprocess.Popen[str]", event: str) -> None:
        """Stop a run while modules are imported and the run is loaded, or some steps later."""
        if event == "a stop at the start":
            time.sleep(0.5 + 5 * self._draw.random())
        else:
            self._wait_for_steps(process)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

    def _wait_for_steps(self, process: "subprocess.Popen[str]") -> None:
        """Wait for a random number of steps, and a part of the next."""
        assert process.stdout is not None
        steps = self._draw.randint(1, 60)
        for line in process.stdout:
            steps -= line.startswith("step ") and "loss" in line
            if not steps:
                break
        time.sleep(self._draw.random() * 0.05)

    def _compare(self, name: str) -> None:
        ours, theirs = self.folder / name, self.folder / "undisturbed"
        assert curve(ours) == curve(theirs)
        assert digests(ours) == digests(theirs)


def curve(output: Path) -> list[tuple[int, float]]:
    """Every step's loss."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def digests(output: Path, step: int = 240) -> dict[str, str]:
    """Return the digests of the files that the run ended with at a step, a file a rank."""
    sealed = json.loads((output / "checkpoints/latest/run.json").read_text())
    assert sealed["content"]["step"] == step
    return {name: file["digest"] for name, file in sealed["content"]["files"].items()}


def _newest(output: Path) -> str:
    names = sorted(
        path.name for path in (output / "checkpoints").glob("step_*") if re.search(r"\d$", path.name)
    )
    return names[-1] if names else "no checkpoint"
