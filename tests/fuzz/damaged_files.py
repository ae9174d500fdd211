"""Damage or replace every file that a command reads: the command gives a result, or one line that names the problem.

    .venv/bin/python tests/fuzz/damaged_files.py [--only NAME] [--sample N]     # about 30 minutes for all

Prints every call that did harm, and a table of commands and files. Harm is a traceback, a fatal signal, a hang, or more than
512 MiB beyond the same command on intact files, which a sample does not run. The exit code is 1 if there was any.
"""

import argparse
import importlib
import os
import pkgutil
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import cv2
import numpy
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from helpers.faces import face, write_pack, write_pairs  # noqa: E402

import partialfc  # noqa: E402
from partialfc.__main__ import main as main_of_package  # noqa: E402
from partialfc.backbones import build_backbone  # noqa: E402
from partialfc.config import AnyBackbone  # noqa: E402
from partialfc.conversion import convert  # noqa: E402

MEMORY, SECONDS = 512 << 20, 120  # bytes beyond the intact call, and time, of a call
RECIPE = """
data: {path: world/pack, num_workers: 0}
backbone: {name: iresnet_tiny, width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 4, global_batch_size: 8}
evaluation: {every: 4}
log: {every: 1}
device: cpu
output: world/run
"""
LOAD_ERRORS = (
    "partialfc.",
    "FileNotFoundError",
    "IsADirectoryError",
    "OSError",
)  # names of expected exceptions

Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command, and the files that it reads, in a folder with `world` and an empty `out`."""

    command: str
    files: tuple[str, ...]

    def run(self) -> None:
        """Run the command in this process."""
        words = self.command.split()
        if words[0] == "load":
            network = partialfc.load(words[1])
            network.embed([numpy.zeros((32, 32, 3), numpy.uint8)])
        else:
            main_of_package(words)


_CHECKPOINT = ("run/checkpoints/latest/run.json", "run/checkpoints/latest/rank_00000.safetensors")
_PACK = ("pack/train.rec", "pack/train.idx", "pack/property")
_NAMED_PACK = (*_PACK, "pack/identities.tsv")
_EXPORT = ("exported/config.json", "exported/model.safetensors")
_RUN = ("run/metrics.jsonl", "run/recipe.yaml", "run/summary.json", "run/log.txt")
CASES = {
    "train": Case(
        "train world/recipe.yaml output=out/run --ranks 1", ("recipe.yaml", *_PACK, "pack/unseen.bin")
    ),
    "resume": Case(
        "train world/recipe.yaml train.length=5 checkpoint.on_config_change=allow --ranks 1",
        (*_CHECKPOINT, "run/metrics.jsonl", "run/log.txt"),
    ),
    "check a recipe": Case("check world/recipe.yaml", ("recipe.yaml", *_PACK, "pack/unseen.bin")),
    "check a pack": Case("check world/pack", _PACK),
    "check a set": Case("check world/pack/unseen.bin", ("pack/unseen.bin",)),
    "plan": Case("plan world/recipe.yaml", ("recipe.yaml", "pack/property")),
    "inspect": Case("inspect world/pack --grid out/a.png", _NAMED_PACK),
    "unpack": Case("unpack world/pack out/a", _NAMED_PACK),
    "split": Case("split world/pack out/a out/b --identities 1", _NAMED_PACK),
    "merge": Case("merge world/pack world/pack out/a", _NAMED_PACK),
    "pack a folder": Case("pack world/faces out/a --size 32", ("faces/p0/p0_0001.jpg",)),
    "pack a list": Case("pack world/train.lst out/a --size 32 --root world/faces", ("train.lst",)),
    "pairs": Case("pairs world/pairs.txt world/faces out/a.bin", ("pairs.txt", "faces/p0/p0_0001.jpg")),
    "evaluate a run": Case("evaluate world/run world/pack/unseen.bin", (*_CHECKPOINT, "pack/unseen.bin")),
    "evaluate an export": Case("evaluate world/exported world/pack/unseen.bin", _EXPORT),
    "evaluate onnx": Case(
        "evaluate world/exported/model.onnx world/pack/unseen.bin", ("exported/model.onnx",)
    ),
    "evaluate weights": Case(
        "evaluate world/weights.pth world/pack/unseen.bin --backbone iresnet_tiny", ("weights.pth",)
    ),
    "embed": Case("embed world/run world/faces out/a.npz", (*_CHECKPOINT, "faces/p0/p0_0001.jpg")),
    "embed a pack": Case("embed world/run world/pack out/a", _PACK),
    "embed again": Case(
        "embed world/run world/pack world/embeddings", ("embeddings/about.json", "embeddings/embeddings.npy")
    ),
    "compare": Case(
        "compare world/run world/faces/p0/p0_0001.jpg world/faces/p1/p1_0001.jpg",
        ("faces/p0/p0_0001.jpg", "run/metrics.jsonl"),
    ),
    "clean": Case("clean world/run world/pack out/a --max-angle 180", (*_CHECKPOINT, *_PACK)),
    "relabel": Case("relabel world/exported world/pack out/a", (*_EXPORT, *_PACK)),
    "export": Case("export world/run out/a", (*_CHECKPOINT, "run/metrics.jsonl")),
    "report": Case("report world/run --out out/a.html", _RUN),
    "plot": Case("plot world/run --out out/a.png", ("run/metrics.jsonl",)),
    "load a run": Case("load world/run", _CHECKPOINT),
    "load an export": Case("load world/exported", _EXPORT),
}


def create_world(folder: Path) -> None:
    """Train a network, and write all files of the cases into `world`."""
    world = folder / "world"
    write_pack(world / "pack", 6, 4, 32)
    write_pairs(world / "pack/unseen.bin", 20, 32)
    (world / "pack/identities.tsv").write_text("".join(f"{it}\tperson {it}\n" for it in range(6)))
    (world / "recipe.yaml").write_text(RECIPE)
    for identity in range(3):
        person = world / f"faces/p{identity}"
        person.mkdir(parents=True)
        for number in (1, 2, 3):
            (person / f"p{identity}_{number:04d}.jpg").write_bytes(face(identity, number))
    (world / "train.lst").write_text("".join(f"{n}\t{n % 3}\tp{n % 3}/p{n % 3}_0001.jpg\n" for n in range(9)))
    (world / "pairs.txt").write_text("1\t1\np0\t1\t2\np0\t1\tp1\t1\n")
    backbone = build_backbone(convert({"name": "iresnet_tiny"}, AnyBackbone, "backbone"))
    torch.save(backbone.state_dict(), world / "weights.pth")
    for command in (
        "train world/recipe.yaml --ranks 1",
        "export world/run world/exported",
        "embed world/run world/pack world/embeddings",
    ):
        arguments = [sys.executable, "-m", "partialfc", *command.split()]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment())


def import_package() -> None:
    """Import all modules, which would take most of the time of a call."""
    for module in pkgutil.walk_packages(partialfc.__path__, "partialfc."):
        if "triton" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("onnxruntime", "matplotlib.pyplot", "pyarrow"):
        with suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def damages(path: Path) -> Iterator[tuple[str, Damage]]:
    """Yield damages of a file, with their names."""
    content, draw = path.read_bytes(), random.Random(path.name)
    for size in sorted({0, 1, len(content) // 3, len(content) // 2, max(0, len(content) - 1)}):
        yield f"cut to {size}", replace_by(content[:size])
    for _ in range(5):
        flipped = bytearray(content)
        place = draw.randrange(len(content))
        flipped[place] ^= 1 << draw.randrange(8)
        yield f"bit flipped in byte {place}", replace_by(bytes(flipped))
    levels = zip("abcdefgh", "bcdefghi", strict=True)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{upper}: &{upper} [{', '.join([f'*{lower}'] * 9)}]\n" for lower, upper in levels
    )
    others = {
        "text": b"hello, world\n" * 20,
        "not UTF-8": b"\xff\xfe\x00caf\xe9\n" * 20,
        "zeros": bytes(max(4096, len(content))),
        "numbers": b"1e309 -1 99999999999999999999999\n" * 20,
        "JSON": b'{"step": -1, "tensors": {"a": {"dtype": "F32", "shape": [-1]}}, "files": []}\n',
        "nested JSON": b"[" * 100_000,
        "YAML aliases": bomb.encode(),
        "an image": face(0, 0),
        "a zip": b"PK\x03\x04" + bytes(60),
        "a pickle": b"cos\nsystem\n(S'exit 1'\ntR.",
    }
    for name, other in others.items():
        yield name, replace_by(other)
    yield "missing", Path.unlink
    yield "a folder", replace_by(Path.mkdir)
    yield "a named pipe", replace_by(os.mkfifo)
    yield "a device", replace_by(lambda it: it.symlink_to("/dev/zero"))
    yield "a dangling link", replace_by(lambda it: it.symlink_to("nowhere"))


def replace_by(what: bytes | Callable[[Path], object]) -> Damage:
    """Return the damage that replaces a file by bytes, or by what a function creates."""

    def damage(path: Path) -> None:
        path.unlink()
        if callable(what):
            what(path)
        else:
            path.write_bytes(what)

    return damage


@dataclass(frozen=True)
class Outcome:
    """Result of a call."""

    code: int | None  # exit code; negative: a signal; None: it did not end in time
    text: str  # what it printed
    memory: int  # peak, in bytes

    def problem(self) -> str:
        """Return what is wrong with it; empty if nothing is."""
        last = (self.text.strip().splitlines() or [""])[-1][:200]
        if self.code is None:
            return "a hang"
        if self.code < 0 or self.code > 2:
            return f"exit code {self.code}: {last}"
        if "Traceback" in self.text:
            return f"traceback: {last}"
        return f"no message: {last}" if self.code == 2 and "error: " not in self.text else ""


def call(case: Case, folder: Path) -> Outcome:
    """Run a command in a folder with `world`, in a fork of this process, which has imported the package."""
    (folder / "out").mkdir()
    pid = os.fork()
    if not pid:
        _run_and_exit(case, folder)
    code, memory = wait(pid)
    text = (folder / "printed").read_text(errors="replace")
    last = (text.strip().splitlines() or [""])[-1]
    if case.command.startswith("load") and code == 1 and last.startswith(LOAD_ERRORS):
        code, text = 2, f"error: {last}"  # as the program of a user sees it
    return Outcome(code, text, memory)


def _run_and_exit(case: Case, folder: Path) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        printed = os.open("printed", os.O_WRONLY | os.O_CREAT)
        for stream, target in enumerate((os.open(os.devnull, os.O_RDONLY), printed, printed)):
            os.dup2(target, stream)
        os.environ.update(environment())
        case.run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> tuple[int | None, int]:
    """Return the exit code of a process, None if it did not end in time, and its peak memory in bytes."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, 0


def attempt(case: Case, original: Path, file: str = "", damage: Damage | None = None) -> Outcome:
    """Run a command on a copy of the world, with one file damaged."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shutil.copytree(original / "world", Path(folder, "world"), symlinks=True)
        if damage is not None:
            damage(Path(folder, "world", file))
        return call(case, Path(folder))


def try_case(name: str, original: Path, sample: int | None) -> int:
    """Try all damages of all files of a case, or a sample of them; print and count those that did harm."""
    case, usual = CASES[name], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if sample is None:
        intact = attempt(case, original)
        usual = max(usual, intact.memory)
        if intact.code != 0:
            sys.exit(f"{name}: fails on intact files: {intact.text[-500:]}")
    choices = [(file, it) for file in case.files for it in damages(original / "world" / file)]
    if sample is not None:
        choices = random.Random(name).sample(choices, sample)
    tried, held = Counter[str](), Counter[str]()
    for file, (damage_name, damage) in choices:
        outcome = attempt(case, original, file, damage)
        problem, more = outcome.problem(), outcome.memory - usual
        if not problem and more > MEMORY:
            problem = f"{more >> 20} MiB more than usual"
        if problem:
            print(f"{name}, {file}, {damage_name}: {problem}", flush=True)
        tried[file] += 1
        held[file] += not problem
    for file, count in tried.items():
        print(f"{name:20} {file:45} {held[file]} of {count} held", flush=True)
    return tried.total() - held.total()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    parser.add_argument(
        "--sample", type=int, help="number of damages for each file of a command; all by default"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        create_world(Path(folder))
        import_package()
        harm = [try_case(name, Path(folder), options.sample) for name in CASES if options.only in name]
    sys.exit(any(harm))


if __name__ == "__main__":
    main()
