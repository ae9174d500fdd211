"""A pack without images is refused by every command that reads packs, in one line."""

from pathlib import Path

import numpy as np
import pytest
from helpers.runs import assert_refused, config_of

from partialfc.__main__ import main
from partialfc.data.recordio import Header, RecordWriter

ARGUMENTS = {
    "inspect": ["PACK"],
    "check": ["PACK"],
    "check --repair": ["PACK", "--repair", "OUT"],
    "check --against": ["PACK", "--against", "PACK"],
    "unpack": ["PACK", "OUT"],
    "merge": ["PACK", "PACK", "OUT"],
    "split": ["PACK", "OUT", "OTHER", "--identities", "1"],
    "pack": ["PACK", "OUT"],
}


@pytest.fixture(params=["no file", "no bytes", "no index", "is empty", "a header alone"])
def pack(request, tmp_path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    if request.param == "no file":
        return folder
    (folder / "train.rec").touch()
    if request.param == "a header alone":
        with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
            writer.write(0, Header(np.array([1.0, 1.0]), 0), b"")
    if request.param == "is empty":
        (folder / "train.idx").touch()
    if request.param != "no index":
        (folder / "property").write_text("5,112,112\n")
    return folder


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_pack_without_images_is_refused(pack, tmp_path, capfd, name):
    places = {"PACK": str(pack), "OUT": str(tmp_path / "out"), "OTHER": str(tmp_path / "b")}
    arguments = [places.get(it, it) for it in ARGUMENTS[name]]
    with pytest.raises(SystemExit) as ended:
        main([name.split()[0], *arguments])
    told = capfd.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and told.startswith("error: "), told
    assert not (tmp_path / "out").exists() and not (tmp_path / "b").exists()


def test_a_run_on_it_is_refused(pack, tmp_path, ranks):
    assert_refused(ranks, 2, config_of(pack, tmp_path / "run"), "pack(/property|/train.(rec|idx))?: ")
