"""A system without the functions that only Linux has. The module `sitecustomize` reaches ranks and workers, too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faces import face

from partialfc.runtime import platform

ROOT = Path(__file__).parents[2]
RECIPE = """
data: {path: PACK, num_workers: 1, synthetic: {identities: 20, images: 2, unseen: 20, pairs: 20, size: 32}}
backbone: {width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 3, global_batch_size: 8}
device: cpu
output: OUTPUT
"""
FAKE_PYTHON = """#!BASH
case "$*" in
  "-c "*) exec REAL "$@" ;;
  "-m venv "*) mkdir -p "$3/bin"; ln -s "$0" "$3/bin/python" ;;
  "-m pip "*) ;;
  *) echo "$*" ;;
esac
"""
# Tools that launch.sh may use besides bash and Python, as POSIX specifies them.
POSIX_TOOLS = ("basename", "cat", "cksum", "dirname", "head", "ln", "mkdir", "sed", "touch", "tr")


def python(*arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).with_name("macos"))}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("macos")
    recipe = RECIPE.replace("PACK", str(folder / "pack")).replace("OUTPUT", str(folder / "run"))
    (folder / "recipe.yaml").write_text(recipe)
    for identity in range(3):
        (folder / f"faces/{identity}").mkdir(parents=True)
        for number in range(2):
            (folder / f"faces/{identity}/{number}.jpg").write_bytes(face(identity, number))
    return folder


def test_the_functions_are_missing():
    program = (
        "import os, select, signal; "
        "print([hasattr(*it) for it in ((os, 'sched_getaffinity'), (os, 'waitid'), (select, 'epoll'))])"
    )
    assert python("-c", program) == "[False, False, False]\n"


def test_train_evaluate_and_load(folder):
    recipe, run = folder / "recipe.yaml", folder / "run"
    assert "finished at step 3" in python("-m", "partialfc", "train", recipe, "--ranks", 2)
    assert "unseen" in python("-m", "partialfc", "evaluate", run, folder / "pack/unseen.bin")
    program = (
        "import sys, numpy, partialfc; model = partialfc.load(sys.argv[1]); "
        "print(model.embed([numpy.zeros((32, 32, 3), numpy.uint8)]).shape)"
    )
    assert python("-c", program, run) == "(1, 16)\n"


def test_pack_and_doctor(folder):
    assert "6 images of 3 identities" in python(
        "-m", "partialfc", "pack", folder / "faces", folder / "packed", "--size", 32
    )
    assert "cores" in python("-m", "partialfc", "doctor", folder / "recipe.yaml", "--ranks", 1)


def test_a_process_exits_with_its_parent_without_prctl(monkeypatch):
    program = (
        "import os, sys, time; from partialfc.runtime import platform; sys.platform = 'darwin'; "
        "platform.exit_with_parent(os.getppid() + 1); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == -9


def test_anonymous_files_have_no_path(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    descriptor = platform.anonymous_file("some")
    os.write(descriptor, b"text")
    assert os.pread(descriptor, 9, 0) == b"text" and os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)


def test_launch_needs_no_gnu_tools_and_creates_the_environment_once(tmp_path):
    """Use a fake Python that creates environments of itself, and prints its arguments."""
    tools, checkout = tmp_path / "bin", tmp_path / "checkout"
    tools.mkdir()
    (checkout / "partialfc").mkdir(parents=True)
    for name in ("launch.sh", "environment.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    for name in ("bash", *POSIX_TOOLS):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").write_text(
        FAKE_PYTHON.replace("BASH", str(tools / "bash")).replace("REAL", sys.executable)
    )
    (tools / "python3").chmod(0o755)
    command = [checkout / "launch.sh", "some.yaml", "train.length=3"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {"PATH": str(tools)}
    both = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(2)]
    said = [it.communicate(timeout=60) for it in both]
    assert [out for out, _ in said] == ["-m partialfc train some.yaml train.length=3\n"] * 2, said
    assert "".join(err for _, err in said).count("creating .venv from requirements.txt") == 1, said
