"""What is installed from a wheel: everything that a run needs, outside the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from partialfc.__main__ import _EXTRA_OF_MODULE

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.synthetic.identities=20",
    "data.synthetic.unseen=20",
    "data.synthetic.pairs=20",
    "train.length=4",
]
SNIPPET = """
import partialfc
model = partialfc.load("output/quickstart")
print(partialfc.__file__, model.embed(["face.jpg", "face.jpg"]).shape)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the wheel, beside the libraries of this one."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # what was built before would be packed, too
    shutil.copytree(ROOT / "partialfc", source / "partialfc")
    shutil.copy(ROOT / "pyproject.toml", source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", source, "--wheel-dir", folder]
    subprocess.run(build, check=True, timeout=300)
    venv.create(folder / "venv", with_pip=True)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "venv/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *folder.glob("*.whl")]
    subprocess.run(install, check=True, timeout=300)
    return python


def test_the_quickstart_runs_from_a_wheel_outside_the_repository(python, tmp_path):
    command = [python.with_name("partialfc"), "train", "quickstart", "--ranks", "1", *SMALL]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stdout and (tmp_path / "output/quickstart/summary.json").exists()
    unpack = [python.with_name("partialfc"), "unpack", "output/quickstart/data", "faces"]
    subprocess.run(unpack, cwd=tmp_path, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
    next((tmp_path / "faces").glob("*/*.jpg")).rename(tmp_path / "face.jpg")
    used = subprocess.run(
        [python, "-c", SNIPPET], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    place, shape = used.stdout.split(maxsplit=1)
    assert Path(place).is_relative_to(python.parents[1]) and shape == "(2, 128)\n"


def test_what_is_pinned_is_what_the_package_asks_for():
    """Every line of requirements.txt is a dependency, or one of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    asked = [it for group in (project["dependencies"], *extras) for it in group]
    names = {re.split("[>=<]", it)[0] for it in asked}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {line.split("==")[0].replace("_", "-") for line in lines if not line.startswith("#")}
    assert names == pinned


def test_a_library_that_is_missing_is_named_with_its_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    expected = {name.replace("-", "_"): extra for extra in ("export", "lmdb") for name in extras[extra]}
    assert expected == _EXTRA_OF_MODULE
