"""A pack that was cut off at any byte is gone on with, and ends in the bytes of one that was not."""

import errno
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.faces import face

from partialfc.data.packs import pack_writer
from partialfc.data.packs.pack_writer import resume_pack, write_pack
from partialfc.errors import InputError
from partialfc.runtime.files import file_lock

SAMPLES = [(label, face(label, image)) for label in range(5) for image in range(4)]
FILES = ("train.rec", "train.idx", "property")
PACKER = Path(__file__).parents[3] / "tools/pack_recordio.py"


class InterruptionError(Exception):
    pass


def interrupted_after(count):
    def samples(done):
        yield from SAMPLES[done:count]
        raise InterruptionError

    return samples


def content(folder):
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture
def whole(tmp_path):
    write_pack(tmp_path / "whole", SAMPLES, size=32)
    return content(tmp_path / "whole")


@pytest.fixture(autouse=True)
def few_together(monkeypatch):
    monkeypatch.setattr(pack_writer, "_FLUSH_EVERY", 3)


@pytest.mark.parametrize("cut", [0, 1, 7, 16])
def test_gone_on_with_after_any_cut(tmp_path, whole, cut):
    """Bytes are missing at the end of the journal, and others follow the records that it names."""
    folder = tmp_path / "pack"
    with pytest.raises(InterruptionError):
        resume_pack(folder, interrupted_after(13), plan="a", size=32)
    journal = folder / ".packing/journal"
    journal.write_bytes(journal.read_bytes()[: 12 * 16 - cut])
    with (folder / ".packing/train.rec").open("ab") as file:
        file.write(b"half a record")
    begun = []

    def rest(done):
        begun.append(done)
        return SAMPLES[done:]

    assert resume_pack(folder, rest, plan="a", size=32) == (5, 20)
    assert begun == [12 - (cut > 0)]
    assert content(folder) == whole and not (folder / ".packing").exists()


def test_another_plan_starts_over(tmp_path, whole):
    with pytest.raises(InterruptionError):
        resume_pack(tmp_path, interrupted_after(9), plan="a", size=32)
    begun = []
    resume_pack(tmp_path, lambda done: begun.append(done) or SAMPLES, plan="b", size=32)
    assert begun == [0] and content(tmp_path) == whole


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_an_interruption_while_files_are_put_in_place(tmp_path, whole, monkeypatch, moved):
    replaced = []
    replace = Path.replace

    def failing(path, target):
        if target.name in FILES and len(replaced) == moved:
            raise InterruptionError
        replaced.extend([target] * (target.name in FILES))
        return replace(path, target)

    write_pack(tmp_path, SAMPLES[:4], size=32)  # an older pack stands there
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        if moved == 3:
            patch.setattr(pack_writer.shutil, "rmtree", lambda path: (_ for _ in ()).throw(InterruptionError))
        with pytest.raises(InterruptionError):
            resume_pack(tmp_path, lambda done: SAMPLES[done:], plan="a", size=32)
    assert resume_pack(tmp_path, lambda done: SAMPLES[done:], plan="a", size=32) == (5, 20)
    assert content(tmp_path) == whole


def test_two_at_once_are_refused(tmp_path):
    with file_lock(tmp_path / ".packing/lock"), pytest.raises(InputError, match="another process is packing"):
        resume_pack(tmp_path, lambda done: SAMPLES, plan="a", size=32)


def test_classes_that_are_no_numbers_from_0(tmp_path):
    with pytest.raises(InputError, match=r"class 2000000000, but 1 images; expected classes numbered from 0"):
        write_pack(tmp_path, [(2_000_000_000, face(0, 0))], size=32)


def test_a_full_disk_is_named_and_gone_on_with(tmp_path, whole, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InterruptionError):
        resume_pack(tmp_path, interrupted_after(7), plan="a", size=32)
    with monkeypatch.context() as patch:
        patch.setattr(pack_writer.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/.packing'"):
            resume_pack(tmp_path, lambda done: SAMPLES[done:], plan="a", size=32)
    begun = []
    resume_pack(tmp_path, lambda done: begun.append(done) or SAMPLES[done:], plan="a", size=32)
    assert begun == [6] and content(tmp_path) == whole


def test_starting_over_that_was_interrupted_is_started_over(tmp_path, whole, monkeypatch):
    with pytest.raises(InterruptionError):
        resume_pack(tmp_path, interrupted_after(9), plan="a", size=32)
    unlink = Path.unlink

    def failing(path, missing_ok=False):
        if path.name == "journal":
            raise InterruptionError
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing)
        with pytest.raises(InterruptionError):
            resume_pack(tmp_path, lambda done: SAMPLES[done:], plan="b", size=32)
    begun = []
    resume_pack(tmp_path, lambda done: begun.append(done) or SAMPLES[done:], plan="a", size=32)
    assert begun == [0] and content(tmp_path) == whole


def test_nothing_to_pack(tmp_path):
    with pytest.raises(InputError, match="no images to pack"):
        write_pack(tmp_path, [], size=32)


def test_the_command_killed_at_random_moments_ends_in_the_same_bytes(tmp_path):
    for label in range(40):
        (tmp_path / f"faces/{label:02d}").mkdir(parents=True)
        content_of = [face(label, image, 64) for image in range(5)]
        for image in range(100):
            (tmp_path / f"faces/{label:02d}/{image:02d}.png").write_bytes(content_of[image % 5])
    command = [sys.executable, PACKER, tmp_path / "faces"]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True, timeout=60)
    chance = random.Random(0)
    killed = 0
    while killed < 4:
        process = subprocess.Popen([*command, tmp_path / "pack"], stderr=subprocess.DEVNULL)
        journal = tmp_path / "pack/.packing/journal"
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (journal.stat().st_size if journal.exists() else 0) == before:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        killed += 1
    subprocess.run([*command, tmp_path / "pack"], check=True, capture_output=True, timeout=60)
    assert killed >= 2
    assert content(tmp_path / "pack") == content(tmp_path / "whole")
