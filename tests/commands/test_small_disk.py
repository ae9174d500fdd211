"""Commands whose output does not fit on the disk: one line that names a file there, and the free space."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.calling import called

from partialfc.runtime.files import atomic_write

COMMANDS = {
    "pack": ("pack", "FACES", "DISK/out", "--size", 32),
    "unpack": ("unpack", "PACK", "DISK/out"),
    "merge": ("merge", "PACK", "PACK", "DISK/out"),
    "embed a pack": ("embed", "RUN", "PACK", "DISK/out"),
    "embed a folder": ("embed", "RUN", "FACES", "DISK/out.npz"),
    "export": ("export", "RUN", "DISK/out"),
    "report": ("report", "RUN", "--out", "DISK/out.html"),
    "plot": ("plot", "RUN", "--out", "DISK/out.png"),
    "inspect": ("inspect", "PACK", "--grid", "DISK/out.png"),
    "evaluate": ("evaluate", "RUN", "PACK/unseen.bin", "--json", "DISK/out.json"),
    "train": ("train", "RUN/recipe.yaml", "output=DISK/out", "--ranks", 1),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system with few kilobytes left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here: root is required")
    (folder / "filler").write_bytes(bytes(60 << 10))
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_named(run, pack, folder, disk, name):
    places = {"PACK": pack, "RUN": run, "FACES": folder, "DISK": disk}
    arguments = [str(it) for it in COMMANDS[name]]
    for word, path in places.items():
        arguments = [it.replace(word, str(path)) for it in arguments]
    done = called(*arguments)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith(f"error: {disk}/"), done.stderr
    assert "No space left on device" in last or "requested and" in last, done.stderr
    assert not list(disk.glob("out.*"))  # neither all nor half of a file


def test_an_error_of_numpy_gets_the_path(tmp_path):
    with (
        pytest.raises(OSError, match="5 requested and 3 written") as caught,
        atomic_write(tmp_path / "a.npy"),
    ):
        raise OSError("5 requested and 3 written")
    assert caught.value.filename == str(tmp_path / "a.npy")
