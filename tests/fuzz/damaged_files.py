"""Files that commands read, damaged or replaced: a command gives a result, or one line that names a file.

    .venv/bin/python tests/fuzz/damaged_files.py [--only NAME]     # all damages of all files, each call in a process

Prints a table of commands x files, and every call that did harm: a traceback, a fatal signal, a hang, or more than 512 MiB
beyond the same command on intact files. The exit code is 1 if there was one.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from helpers.faces import face, write_pack, write_pairs  # noqa: E402

MEMORY, SECONDS = 512 << 20, 120  # of a call
RECIPE = """
data: {path: WORLD/pack, num_workers: 0}
backbone: {name: iresnet_tiny, width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 4, global_batch_size: 8}
evaluation: {every: 4}
log: {every: 1}
device: cpu
output: WORLD/run
"""


@dataclass(frozen=True)
class Case:
    """A command, and the files that it reads; WORLD is the folder of them all, OUT a new one."""

    command: tuple[str, ...]
    files: tuple[str, ...]


_CHECKPOINT = ("run/checkpoints/latest/run.json", "run/checkpoints/latest/rank_00000.safetensors")
_PACK = ("pack/train.rec", "pack/train.idx", "pack/property")
_EXPORT = ("exported/config.json", "exported/model.safetensors")
_LOAD = (
    "import sys, numpy, partialfc; partialfc.load(sys.argv[1]).embed([numpy.zeros((32, 32, 3), numpy.uint8)])"
)
CASES = {
    "train": Case(("train", "WORLD/recipe.yaml", "--ranks", "1"), ("recipe.yaml", *_PACK, "pack/unseen.bin")),
    "resume": Case(
        ("train", "WORLD/recipe.yaml", "train.length=5", "checkpoint.on_config_change=allow", "--ranks", "1"),
        (*_CHECKPOINT, "run/metrics.jsonl", "run/log.txt"),
    ),
    "check a recipe": Case(("check", "WORLD/recipe.yaml"), ("recipe.yaml", *_PACK, "pack/unseen.bin")),
    "check a pack": Case(("check", "WORLD/pack"), _PACK),
    "check a set": Case(("check", "WORLD/pack/unseen.bin"), ("pack/unseen.bin",)),
    "plan": Case(("plan", "WORLD/recipe.yaml"), ("recipe.yaml", "pack/property")),
    "inspect": Case(("inspect", "WORLD/pack", "--grid", "OUT/a.png"), (*_PACK, "pack/identities.tsv")),
    "unpack": Case(("unpack", "WORLD/pack", "OUT/a"), (*_PACK, "pack/identities.tsv")),
    "split": Case(
        ("split", "WORLD/pack", "OUT/a", "OUT/b", "--identities", "1"), (*_PACK, "pack/identities.tsv")
    ),
    "merge": Case(("merge", "WORLD/pack", "WORLD/pack", "OUT/a"), _PACK),
    "pack a folder": Case(("pack", "WORLD/faces", "OUT/a", "--size", "32"), ("faces/0/0.jpg",)),
    "pack a list": Case(
        ("pack", "WORLD/train.lst", "OUT/a", "--size", "32", "--root", "WORLD/faces"), ("train.lst",)
    ),
    "pairs": Case(("pairs", "WORLD/pairs.txt", "WORLD/faces", "OUT/a.bin"), ("pairs.txt", "faces/0/0.jpg")),
    "evaluate a run": Case(("evaluate", "WORLD/run", "WORLD/pack/unseen.bin"), (*_CHECKPOINT, "pack/unseen.bin")),
    "evaluate an export": Case(("evaluate", "WORLD/exported", "WORLD/pack/unseen.bin"), _EXPORT),
    "evaluate onnx": Case(
        ("evaluate", "WORLD/exported/model.onnx", "WORLD/pack/unseen.bin"), ("exported/model.onnx",)
    ),
    "evaluate weights": Case(
        ("evaluate", "WORLD/weights.pth", "WORLD/pack/unseen.bin", "--backbone", "WORLD/recipe.yaml"),
        ("weights.pth",),
    ),
    "embed": Case(("embed", "WORLD/run", "WORLD/faces", "OUT/a.npz"), (*_CHECKPOINT, "faces/0/0.jpg")),
    "embed a pack": Case(("embed", "WORLD/run", "WORLD/pack", "OUT/a"), _PACK),
    "compare": Case(
        ("compare", "WORLD/run", "WORLD/faces/0/0.jpg", "WORLD/faces/1/0.jpg"),
        ("faces/0/0.jpg", "run/metrics.jsonl"),
    ),
    "clean": Case(
        ("clean", "WORLD/pack", "WORLD/run", "OUT/a"), (*_CHECKPOINT, *_PACK)
    ),
    "relabel": Case(
        ("relabel", "WORLD/pack", "WORLD/embeddings", "OUT/a"),
        ("embeddings/embeddings.npy", "embeddings/about.json"),
    ),
    "export": Case(("export", "WORLD/run", "OUT/a"), (*_CHECKPOINT, "run/metrics.jsonl")),
    "report": Case(
        ("report", "WORLD/run", "--out", "OUT/a.html"),
        ("run/metrics.jsonl", "run/recipe.yaml", "run/summary.json", "run/log.txt", "run/tensorboard/*"),
    ),
    "plot": Case(("plot", "WORLD/run", "--out", "OUT/a.png"), ("run/metrics.jsonl",)),
    "load a run": Case(("-c", _LOAD, "WORLD/run"), _CHECKPOINT),
    "load an export": Case(("-c", _LOAD, "WORLD/exported"), _EXPORT),
}  # fmt: skip


def create_world(world: Path) -> None:
    """Train a network, and write all files of the cases."""
    write_pack(world / "pack", 6, 4, 32)
    write_pairs(world / "pack/unseen.bin", 20, 32)
    (world / "pack/identities.tsv").write_text("".join(f"{it}\tperson {it}\n" for it in range(6)))
    (world / "recipe.yaml").write_text(RECIPE.replace("WORLD", str(world)))
    for identity in range(3):
        (world / f"faces/{identity}").mkdir(parents=True)
        for number in range(3):
            (world / f"faces/{identity}/{number}.jpg").write_bytes(face(identity, number))
    (world / "train.lst").write_text("".join(f"{n}\t{n % 3}\t{n % 3}/{n // 3}.jpg\n" for n in range(9)))
    (world / "pairs.txt").write_text("0/0.jpg 0/1.jpg 1\n0/0.jpg 1/0.jpg 0\n" * 2)
    for command in (
        ("train", world / "recipe.yaml", "--ranks", 1),
        ("export", world / "run", world / "exported"),
        ("embed", world / "run", world / "pack", world / "embeddings"),
    ):
        subprocess.run(
            [sys.executable, "-m", "partialfc", *map(str, command)], check=True, capture_output=True
        )
    torch.save(safetensors.torch.load_file(world / "exported/model.safetensors"), world / "weights.pth")


def find(world: Path, pattern: str) -> Path:
    """Return the file of a case."""
    folder, _, name = pattern.rpartition("/")
    return next(path for path in sorted((world / folder).glob(name)))


Damage = Callable[[Path], None]


def damages(path: Path) -> Iterator[tuple[str, Damage]]:
    """Yield what may become of a file, which exists again when the next one is asked for."""
    content, draw = path.read_bytes(), random.Random(path.name)
    for size in sorted({0, 1, len(content) // 3, len(content) // 2, max(0, len(content) - 1)}):
        yield f"cut to {size}", instead(bytes(content[:size]))
    for _ in range(5):
        flipped = bytearray(content)
        place = draw.randrange(len(content))
        flipped[place] ^= 1 << draw.randrange(8)
        yield f"bit flipped in byte {place}", instead(bytes(flipped))
    others = {
        "text": b"hello, world\n" * 20,
        "not UTF-8": b"\xff\xfe\x00caf\xe9\n" * 20,
        "zeros": bytes(max(4096, len(content))),
        "numbers": b"1e309 -1 99999999999999999999999\n" * 20,
        "JSON": b'{"step": -1, "tensors": {"a": {"dtype": "F32", "shape": [-1]}}, "files": []}\n',
        "nested JSON": b"[" * 100_000,
        "YAML aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n".encode()
            for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "an image": face(0, 0),
        "a zip": b"PK\x03\x04" + bytes(60),
        "a pickle": b"cos\nsystem\n(S'exit 1'\ntR.",
    }
    for name, other in others.items():
        yield name, instead(other)
    yield "missing", Path.unlink
    yield "a folder", instead(Path.mkdir)
    yield "a FIFO", instead(os.mkfifo)
    yield "a device", instead(lambda it: it.symlink_to("/dev/zero"))
    yield "a dangling link", instead(lambda it: it.symlink_to("nowhere"))


def instead(what: bytes | Callable[[Path], object]) -> Damage:
    """Return the damage that replaces a file by other bytes, or by what a function creates."""

    def damage(path: Path) -> None:
        path.unlink()
        if callable(what):
            what(path)
        else:
            path.write_bytes(what)

    return damage


def nothing(path: Path) -> None:
    """Do not damage a file."""


def arguments(case: Case, world: Path, out: Path) -> list[str]:
    """Return the command line after `python`."""
    command = [it.replace("WORLD", str(world)).replace("OUT", str(out)) for it in case.command]
    return command if command[0] == "-c" else ["-m", "partialfc", *command]


def run(case: Case, world: Path, folder: Path) -> tuple[str, int]:
    """Return what is wrong with a call, if anything, and the bytes of memory that it took."""
    copy, out = folder / "world", folder / "out"
    out.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *arguments(case, copy, out)], stdout=said, stderr=said, env=environment,
            stdin=subprocess.DEVNULL, start_new_session=True, cwd=folder,
        )  # fmt: skip
        peak = wait(process)
    text = (folder / "said").read_text(errors="replace")
    if peak is None:
        return "a hang", 0
    if process.returncode < 0 or process.returncode > 128:
        return f"exit code {process.returncode}: {text[-200:]}", peak
    if case.command[0] == "-c":
        last = text.strip().splitlines()[-1:] or [""]
        fine = process.returncode == 0 or last[0].startswith(
            ("partialfc.", "FileNotFoundError", "OSError", "IsADirectoryError")
        )
        return ("" if fine else f"traceback: {last[0][:200]}"), peak
    if "Traceback" in text:
        return f"traceback: {text.strip().splitlines()[-1][:200]}", peak
    if process.returncode and "error: " not in text and process.returncode != 1:
        return f"exit code {process.returncode} without a line: {text[-200:]}", peak
    return "", peak


def wait(process: subprocess.Popen[bytes]) -> int | None:
    """Return the peak memory of a process; None if it does not end in time."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage.ru_maxrss << 10
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="part of the names of the cases to run")
    options = parser.parse_args()
    tried: Counter[tuple[str, str]] = Counter()
    harm: dict[tuple[str, str], list[str]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        world = Path(root, "original")
        world.mkdir()
        create_world(world)
        for name, case in CASES.items():
            if options.only and options.only not in name:
                continue
            for pattern in case.files:
                usual = None
                for damage, apply in [("intact", nothing), *damages(find(world, pattern))]:
                    folder = Path(root, "call")
                    folder.mkdir()
                    shutil.copytree(world, folder / "world", symlinks=True)
                    recipe = folder / "world/recipe.yaml"
                    recipe.write_text(RECIPE.replace("WORLD", str(folder / "world")))
                    apply(find(folder / "world", pattern))
                    problem, peak = run(case, world, folder)
                    usual = usual or peak
                    if peak > usual + MEMORY:
                        problem = problem or f"{(peak - usual) >> 20} MiB more than usual"
                    tried[name, pattern] += 1
                    if problem:
                        harm.setdefault((name, pattern), []).append(damage)
                        print(f"{name}, {pattern}, {damage}: {problem}", flush=True)
                    shutil.rmtree(folder)
    for (name, pattern), count in tried.items():
        print(f"{name:20} {pattern:50} {count - len(harm.get((name, pattern), [])):3} of {count} held")
    sys.exit(bool(harm))


if __name__ == "__main__":
    main()
