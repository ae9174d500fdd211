"""The command line itself: its help, its names, the recipes that ship."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faces import write_pack, write_pairs

from partialfc.__main__ import main
from partialfc.bundled_recipes import bundled_recipes
from partialfc.commands.app import COMMAND_GROUPS
from partialfc.config import load_config
from partialfc.launching import launcher
from partialfc.plan import GPUS

ROOT = Path(__file__).parents[2]
NAMES = [function.__name__.rstrip("_") for functions in COMMAND_GROUPS.values() for function in functions]


@pytest.fixture
def called(capfd):
    """Exit code, stdout and stderr of a call in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(it) for it in arguments])
        return (ended.value.code or 0, *capfd.readouterr())

    return call


def test_help_names_every_command_in_its_group(called):
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = called(*arguments)
        assert code == 0 and not err
        places = [out.index(f" {group} ") for group in COMMAND_GROUPS]
        assert places == sorted(places) and all(re.search(rf"│ {name} ", out) for name in NAMES)


@pytest.mark.parametrize("command", [*([it] for it in NAMES), ["recipes"], ["recipes", "show"]], ids=str)
def test_every_command_says_what_it_does_with_an_example(called, command):
    code, out, _ = called(*command, "--help")
    assert code == 0 and f"Usage: partialfc {' '.join(command)} " in out
    assert re.search(rf"^  partialfc {' '.join(command)}( |$)", out, re.MULTILINE), out


def test_version(called):
    code, out, _ = called("--version")
    assert code == 0 and re.fullmatch(r"partialfc \d+\.\d+\.\d+, torch 2\..*\n", out)


def test_completion_is_quick_and_complete():
    """It imports nothing that is large."""
    script = "import sys, partialfc.commands.app; print(sum(it in sys.modules for it in ('torch', 'cv2', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    asked = {"_PARTIALFC_COMPLETE": "complete_bash", "COMP_WORDS": "partialfc ins", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("partialfc")],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["inspect"], done


def test_what_reads_may_stop_reading():
    done = subprocess.run(
        f"{sys.executable} -m partialfc recipes show quickstart | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n" and not done.stderr


def test_recipes_are_listed_with_a_line_each(called):
    code, out, _ = called("recipes")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == sorted(
        path.stem for path in (ROOT / "recipes").glob("*.yaml")
    )
    assert all(30 < len(line) < 130 for line in lines), lines


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_recipe_that_is_copied_says_the_same(called, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, out, _ = called("recipes", "show", name)
    Path("mine.yaml").write_text(out)
    assert code == 0 and load_config("mine.yaml") == load_config(name) == load_config(f"{name}.yaml")


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("base: quickstart.yaml\nseed: 7\n")
    assert load_config("quickstart").seed == 7 and load_config("quickstart.yaml").seed == 0


@pytest.mark.parametrize("command", ["train", "plan", "check", "recipes show"])
def test_a_recipe_that_is_not_there(called, command):
    code, out, err = called(*command.split(), "quikstart")
    assert code == 2 and not out
    assert re.fullmatch(
        r"error: recipe quikstart: not found; expected a file, or one of .*; did you mean "
        r"quickstart\?\n",
        err,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack", 5, 4)
    write_pairs(tmp_path / "pack/some.bin")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{path: {tmp_path / 'pack'}}}\ntrain: {{length: 3, global_batch_size: 12}}\n"
    )
    return tmp_path / "recipe.yaml"


def test_a_recipe_that_could_run_is_ok(called, recipe):
    code, out, err = called("check", recipe)
    pack = recipe.parent / "pack"
    assert code == 0 and not err
    assert out.splitlines() == [
        f"{pack}: 20 images of 5 identities",
        f"{pack}/some.bin: evaluation set some, 40 images",
        f"not read: images (partialfc check {pack})",
        f"{recipe}: OK; valid world sizes: 1, 2, 3, 4, 6",
    ]
    code, out, _ = called("check", "quickstart", "data.path=nothing/there")
    assert code == 0 and "nothing/there: 400 synthetic identities will be generated" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RECIPE", "data.path=nowhere"], "nowhere: no such folder; expected train.rec"),
        (["RECIPE", "train.global_batch_size=0"], "train.global_batch_size: expected int >= 1; found 0"),
        (
            ["RECIPE", "train.global_batch_size=1"],
            "train.global_batch_size 1 cannot be split over any number of ranks",
        ),
        (["RECIPE", "init.backbone=none.pth"], "none.pth: not found; expected weights"),
        (["RECIPE", "--repair", "out"], "--repair and --against are for packs; expected a folder"),
        (
            ["PACK", "train.global_batch_size=8"],
            "train.global_batch_size=8: settings belong to a recipe, but .*pack is a folder",
        ),
    ],
)
def test_a_recipe_that_could_not_run_is_refused(called, recipe, arguments, message):
    places = {"RECIPE": recipe, "PACK": recipe.parent / "pack"}
    code, _, err = called("check", *(places.get(it, it) for it in arguments))
    assert code == 2 and err.count("\n") == 1 and re.search(message, err), err


def test_a_damaged_pair_set_is_found(called, recipe):
    (recipe.parent / "pack/some.bin").write_bytes(b"nothing")
    code, _, err = called("check", recipe)
    assert code == 2 and "some.bin" in err and err.count("\n") == 1


def test_plan_names_every_gpu_that_it_knows(called):
    _, out, _ = called("plan", "--help")
    assert all(re.search(rf"\b{name}\b", out) for name in GPUS)


def test_a_code_of_a_run_is_the_commands(called, recipe, monkeypatch):
    monkeypatch.setattr(launcher, "launch", lambda asked: 75)
    assert called("train", recipe)[0] == 75


def test_launch_sh_says_how_it_is_called():
    for arguments, code in (([], 2), (["--help"], 0)):
        done = subprocess.run(
            [ROOT / "launch.sh", *arguments], capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode == code
        assert (done.stdout or done.stderr).startswith(
            "usage: launch.sh [--ranks N] RECIPE [section.key=value ...]\n"
        )
