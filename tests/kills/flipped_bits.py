"""Flip bits in the files of a checkpoint and a pack: a resumed run ends with the bits of an intact one, or names the file.

RecordIO has no checksums: in a pack's records, a flip can also become another image or label, which no reader can know.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fuzz.damaged_files import Case, call, environment, import_package
from helpers.faces import write_pack, write_pairs
from kills.disturbed_runs import curve, digests

RECIPE = """
data: {path: world/pack, num_workers: 0}
backbone: {name: iresnet_tiny, width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 12, global_batch_size: 8}
evaluation: {every: 12}
checkpoint: {every: 4, keep: 3}
log: {every: 1}
device: cpu
output: world/run
"""
RESUME = "train world/recipe.yaml --ranks 1"
RECORDS = "pack/train.rec"
SAME, REFUSED, CHANGED = "the same bits", "refused by name", "another image or label"


def flip_bits(folder: Path, flips: int, seed: int) -> dict[str, Counter[str]]:
    """Resume a run after each of `flips` flips; return the number of each outcome by file."""
    _create_world(folder / "intact/world")
    import_package()
    checkpoint = (folder / "intact/world/run/checkpoints/latest").resolve()
    paths = [*checkpoint.iterdir(), *(folder / "intact/world/pack").iterdir()]
    names = sorted(
        str(it.relative_to((folder / "intact/world").resolve())) for it in map(Path.resolve, paths)
    )
    outcomes = {name: Counter[str]() for name in names}
    draw = random.Random(seed)
    for number in range(flips):
        name = names[number % len(names)]
        shutil.copytree(folder / "intact", folder / "flipped", symlinks=True)
        place = flip_a_bit(folder / "flipped/world" / name, draw)
        outcome = _resume(folder, name)
        print(f"flip {number + 1}: {name}, byte {place}: {outcome}", flush=True)
        outcomes[name][outcome] += 1
        shutil.rmtree(folder / "flipped")
    return outcomes


def flip_a_bit(path: Path, draw: random.Random) -> int:
    """Flip a random bit of a file, and return the number of its byte."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return place


def _create_world(world: Path) -> None:
    """Train `world/done` to the end; `world/run` is the same run, stopped at the checkpoint before the last."""
    write_pack(world / "pack", 6, 4, 32)
    write_pairs(world / "pack/unseen.bin", 20, 32)
    (world / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "partialfc", *RESUME.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=world.parent, env=environment())
    shutil.copytree(world / "run", world / "done", symlinks=True)
    checkpoints = world / "run/checkpoints"
    shutil.rmtree(checkpoints / "step_00000012")
    (checkpoints / "latest").unlink()
    os.symlink("step_00000008", checkpoints / "latest")


def _resume(folder: Path, name: str) -> str:
    outcome = call(Case(RESUME, (name,)), folder / "flipped")
    problem = outcome.problem()
    assert not problem, (name, problem)
    if outcome.code == 2:
        path = folder / "flipped/world" / name
        assert str(path) in outcome.text or str(path.parent) in outcome.text, (name, outcome.text)
        return REFUSED
    done, run = folder / "flipped/world/done", folder / "flipped/world/run"
    if digests(run, 12) == digests(done, 12):
        assert curve(run) == curve(done), name
        return SAME
    assert name == RECORDS, (name, outcome.text)
    return CHANGED
