"""What the documents say is so: their commands run, their snippets too, their settings are settings, their links lead somewhere."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.detector import MAGENTA, write_detector
from helpers.faces import face

from partialfc.backbones import build_backbone
from partialfc.config import MobileFaceNetConfig, load_config
from partialfc.data.images import write

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLE = (
    (ROOT / "docs/how-to/move_from_insightface.md")
    .read_text()
    .partition("## Keys")[2]
    .partition("## What")[0]
)
SETTINGS = [
    code
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| `config.`")
    for code in re.findall(r"`([a-z_.]+: [^`]+)`", line)
    if ".." not in code
]

# In place of the command: as it is, but a run is short, of small networks, on one rank, a machine's own, and drawn nowhere.
SHORT = """#!/usr/bin/env bash
set -e
command=("$@")
if [ "$1" = sweep ]; then command+=(--shard 0/4); fi
short=(device=cpu train.length=2 train.global_batch_size=8 train.micro_batch_size=4 schedule.warmup=0 optim.precision=float32 evaluation.every=0 evaluation.batch_size=16 data.num_workers=0 log.loggers=[])
case "$*" in *--measure*) command+=("${short[@]}" --gpus 1) ;; esac
if [ "$1" = train ] || [ "$1" = sweep ]; then
  command+=("${short[@]}")
  case "$*" in *--ranks*) ;; *) command+=(--ranks 1) ;; esac
  case "$*" in *quickstart*) command+=(data.synthetic.identities=20 data.synthetic.unseen=20 data.synthetic.pairs=20) ;; esac
fi
exec PYTHON -m partialfc "${command[@]}"
"""


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page that is to be run: none that says in its first line that it wants more than is here."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [
        it for it in found if not it.startswith(("# on a cluster", "# opens a server", "# takes minutes"))
    ]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with what the pages take for granted, and the environment of their commands."""
    folder = tmp_path_factory.mktemp("workshop")
    tools = tmp_path_factory.mktemp("bin")
    (tools / "partialfc").write_text(SHORT.replace("PYTHON", sys.executable))
    (tools / "partialfc").chmod(stat.S_IRWXU)
    for identity in range(20):
        for place, images in ((f"faces/{identity}", 4), (f"validation/P_{identity}", 3)):
            (folder / place).mkdir(parents=True)
            for image in range(1, images + 1):
                name = f"{Path(place).name}_{image:04}.jpg"
                (folder / place / name).write_bytes(face(identity + 20 * (images == 3), image))
    pairs = [f"P_{it}\t1\t2" for it in range(5)] + [f"P_{it}\t1\tP_{it + 1}\t2" for it in range(5)]
    (folder / "pairs.txt").write_text("\n".join(["1\t5", *pairs, ""]))
    for name, image in (("a.jpg", 1), ("b.jpg", 2)):
        (folder / name).write_bytes(face(3, image))
    write_detector(folder / "yunet.onnx")
    (folder / "photographs/ann").mkdir(parents=True)
    photo = np.full((240, 320, 3), 128, np.uint8)
    photo[96:160, 128:192] = MAGENTA
    write(folder / "photographs/ann/1.png", photo)
    torch.save(build_backbone(MobileFaceNetConfig()).state_dict(), folder / "backbone.pth")
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    for block in blocks(ROOT / "README.md", "sh")[1:]:  # the first makes an environment
        ran(["bash", "-euo", "pipefail", "-c", block], folder, environment)
    shutil.copytree(folder / "output/mine", folder / "output/first")
    return folder, environment


def ran(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, (command[-1], done.stderr, done.stdout[-500:])


@pytest.mark.parametrize("page", [it for it in PAGES if it.name != "README.md"], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(workshop, tmp_path, page):
    folder, environment = workshop
    shutil.copytree(folder, tmp_path / "here")
    for made in re.findall(
        r"^partialfc (?:pack|export) \S+ (\w+)", "\n".join(blocks(page, "sh")), re.MULTILINE
    ):
        shutil.rmtree(
            tmp_path / "here" / made, ignore_errors=True
        )  # made by the README's call; here by the page's
    for block in blocks(page, "sh"):
        ran(["bash", "-euo", "pipefail", "-c", block], tmp_path / "here", environment)
    for block in blocks(page, "python"):
        ran([sys.executable, "-c", block], tmp_path / "here", environment)


def test_the_readme_is_short_and_its_snippets_run(workshop):
    folder, environment = workshop
    assert len((ROOT / "README.md").read_text().split()) <= 700
    assert (folder / "exported/model.onnx").exists()
    for block in blocks(ROOT / "README.md", "python"):
        ran([sys.executable, "-c", block], folder, environment)


def test_every_command_is_in_a_block_that_is_run_or_says_why_not():
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"^    (\./launch\.sh|\.venv/bin|partialfc) ", text, re.MULTILINE), page


def written(code: str) -> str:
    """A setting as a section of a recipe."""
    name, _, value = code.partition(": ")
    section, _, key = name.partition(".")
    return f"{section}: {{{key}: {value}}}" if key else code


@pytest.mark.parametrize("code", SETTINGS)
def test_settings_that_stand_for_insightfaces_are_recipes(tmp_path, code):
    (tmp_path / "recipe.yaml").write_text(f"base: ms1mv3_r50_cosface\n{written(code)}\n")
    load_config(tmp_path / "recipe.yaml")


def test_there_are_some():
    assert len(SETTINGS) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
