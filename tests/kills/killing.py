"""A run that is killed again and again, at random places, and its end beside that of an undisturbed one."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from helpers.faces import write_pack, write_pairs
from helpers.running import children, command_of

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
# Within the program, in the rank that comes there: function, and the least and greatest number of its call.
INSIDE = {
    "a step": ("partialfc.training.loop.train_step", 1, 60),
    "a snapshot": ("partialfc.runtime.checkpoint.state_snapshot.StateSnapshot.copy_state", 1, 6),
    "a write": ("partialfc.runtime.checkpoint.writer.Throttle.__call__", 1, 20),
    "a digest": ("partialfc.runtime.checkpoint.manager.compute_digest", 1, 2),
    "a load": ("partialfc.runtime.checkpoint.manager.read_rows_into", 1, 60),
    "a manifest": ("partialfc.runtime.checkpoint.folder.write_manifest", 1, 6),
    "a publication": ("partialfc.runtime.checkpoint.folder.CheckpointFolder.publish", 1, 6),
    "a link": ("partialfc.runtime.checkpoint.folder.CheckpointFolder._link", 1, 6),
    "a removal": ("partialfc.runtime.checkpoint.folder.CheckpointFolder._remove", 1, 6),
    "an evaluation": ("partialfc.training.run.embed_sets", 1, 2),
}
OUTSIDE = ("a rank", "all ranks", "the launcher", "a data worker")
STOPS = ("a stop at the start", "a stop")  # SIGTERM to the launcher, at any time
SITECUSTOMIZE = """
import os, signal, sys
if "partialfc.train" in " ".join(sys.orig_argv):
    import importlib
    path, call = os.environ["KILL_IN"].split()
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
    right, calls = getattr(owner, names[-1]), 0
    def killing(*arguments, **named):
        global calls
        calls += 1
        if calls == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        return right(*arguments, **named)
    setattr(owner, names[-1], killing)
"""


@dataclass
class Killing:
    """folder: for the pack and both runs. ranks: of each run."""

    folder: Path
    ranks: int
    seed: int
    counts: dict[str, int] = field(default_factory=dict)  # kills that were survived, by place

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

    def undisturbed(self) -> None:
        """The run that all others are held against."""
        done = self._started("undisturbed", {})
        _, err = done.communicate(timeout=900)
        assert done.returncode == 0, err

    def kill_until(self, kills: int, name: str = "run") -> None:
        """Kill a run until it has been killed so often, or is done; then let it end, and compare."""
        life = 0
        while sum(self.counts.values()) < kills:
            life += 1
            where = self._draw.choice([*INSIDE, *OUTSIDE, *STOPS])
            environment = {}
            if where in INSIDE:
                function, least, most = INSIDE[where]
                environment = {"KILL_IN": f"{function} {self._draw.randint(least, most)}"}
                environment["PYTHONPATH"] = str(self.folder)
            process = self._started(name, environment)
            if where in OUTSIDE:
                self._kill(process, where)
            elif where in STOPS:
                self._stop(process, where)
            out, err = process.communicate(timeout=900)
            if process.returncode == 0:
                break
            expected = (75,) if where in STOPS else (-9, 4, 128 + 9)
            assert process.returncode in expected, (where, process.returncode, out[-500:], err)
            assert "Traceback" not in err, (where, err)
            self.counts[where] = self.counts.get(where, 0) + 1
            print(f"{sum(self.counts.values())}: {where}, {_newest(self.folder / name)}", flush=True)
        process = self._started(name, {})
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        self._compare(name)

    def _started(self, name: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
        command = [*self._command, f"output={self.folder / name}"]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def _kill(self, process: "subprocess.Popen[str]", where: str) -> None:
        """Some steps after the first, wherever the run is then."""
        self._wait_for_steps(process)
        ranks = [pid for pid in children(process.pid) if "partialfc.train" in command_of(pid)]
        if not ranks:  # it has just ended
            return
        workers = [pid for rank in ranks for pid in children(rank) if "spawn_main" in command_of(pid)]
        victims = {
            "a rank": [self._draw.choice(ranks)],
            "all ranks": ranks,
            "the launcher": [process.pid],
            "a data worker": [self._draw.choice(workers or ranks)],
        }
        for pid in victims[where]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _stop(self, process: "subprocess.Popen[str]", where: str) -> None:
        """While modules are imported and the run is loaded, or some steps later: in a step, an evaluation or a save."""
        if where == "a stop at the start":
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


def digests(output: Path) -> dict[str, str]:
    """Of all tensors that the run ended with, a file a rank."""
    sealed = json.loads((output / "checkpoints/latest/run.json").read_text())
    assert sealed["content"]["step"] == 240
    return {name: file["digest"] for name, file in sealed["content"]["files"].items()}


def _newest(output: Path) -> str:
    names = sorted(
        path.name for path in (output / "checkpoints").glob("step_*") if re.search(r"\d$", path.name)
    )
    return names[-1] if names else "no checkpoint"
