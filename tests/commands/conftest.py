"""A run, what was exported of it, and faces, for the tests of commands."""

from pathlib import Path

import pytest
from helpers.calling import called
from helpers.faces import face
from helpers.runs import config_of, trained


@pytest.fixture(scope="module")
def run(ranks, pack, tmp_path_factory) -> Path:
    """One that is cheap, with a checkpoint inside."""
    output = tmp_path_factory.mktemp("run")
    ranks.run(2, trained, config_of(pack, output, checkpoint={"every": 15}))
    return output


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    done = called("export", run, out / "model")
    assert done.returncode == 0, done.stderr
    assert "minimum cosine" in done.stdout and not done.stderr
    return out / "model"


@pytest.fixture
def folder(tmp_path) -> Path:
    for identity in range(3):
        (tmp_path / f"faces/{identity}").mkdir(parents=True)
        for image in range(5):
            (tmp_path / f"faces/{identity}/{image}.jpg").write_bytes(face(identity, image))
    return tmp_path / "faces"
