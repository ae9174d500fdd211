"""Listings, tars and LMDB sets are packed as the folders they were made of."""

import io
import tarfile
from pathlib import Path

import lmdb
import msgpack
import pytest
from helpers.faces import face

from partialfc.data import RecordDataset
from partialfc.data.packs import pack_writer
from partialfc.data.packs.pack_sources import PackOptions, pack_images
from partialfc.data.packs.sources import open_source
from partialfc.errors import InputError

SAMPLES = [(label, face(label, image)) for label in range(3) for image in range(2)]
SMALL = PackOptions(size=32)


def packed(source, folder, packing=SMALL):
    pack_images([source], folder, packing)
    dataset = RecordDataset(folder)
    return [(dataset.label(sample), dataset.encoded_image(sample)) for sample in range(len(dataset))]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def members(samples, start=0):
    found = {}
    for number, (label, content) in enumerate(samples, start):
        found[f"some/{number:04d}.jpg"] = content
        found[f"some/{number:04d}.cls"] = f"{label}\n".encode()
    return found


def write_lmdb(path: Path, entries: dict[bytes, bytes], *, subdir=True) -> None:
    with (
        lmdb.open(str(path), subdir=subdir, map_size=1 << 24) as environment,
        environment.begin(write=True) as it,
    ):
        for key, value in entries.items():
            it.put(key, value)


def entries(samples, **options):
    keys = [str(number).encode() for number in range(len(samples))]
    values = [msgpack.packb([content, label], **options) for label, content in samples]
    facts = {b"__len__": msgpack.packb(len(keys)), b"__keys__": msgpack.packb(keys, **options)}
    return dict(zip(keys, values, strict=True)) | facts | {b"__classnum__": msgpack.packb(3)}


@pytest.mark.parametrize(
    "line", ["{number}\t{label}.0\t{path}", "1\t{path}\t{label}", "{number}\t{label}\t7\t{path}"]
)
def test_listings_of_either_kind(tmp_path, line):
    lines = []
    for number, (label, content) in enumerate(SAMPLES):
        (tmp_path / f"{number} x.jpg").write_bytes(content)
        lines.append(line.format(number=number, label=label, path=f"{number} x.jpg"))
    (tmp_path / "train.lst").write_text("\n".join(lines) + "\n\n")
    assert packed(tmp_path / "train.lst", tmp_path / "pack") == SAMPLES


def test_tars_of_a_folder_are_one_source(tmp_path):
    write_tar(tmp_path / "a-0.tar", members(SAMPLES[:3]))
    write_tar(tmp_path / "a-1.tar", members(SAMPLES[3:], 3))
    assert packed(tmp_path, tmp_path / "pack") == SAMPLES
    assert packed(tmp_path / "a-1.tar", tmp_path / "one", PackOptions(size=32, min_images=2)) == [
        (0, content) for _, content in SAMPLES[4:]
    ]


@pytest.mark.parametrize("options", [{}, {"use_bin_type": False}])
@pytest.mark.parametrize("subdir", [True, False])
def test_lmdb_sets(tmp_path, options, subdir):
    write_lmdb(tmp_path / "set.lmdb", entries(SAMPLES, **options), subdir=subdir)
    assert packed(tmp_path / "set.lmdb", tmp_path / "pack") == SAMPLES


def test_an_lmdb_without_a_list_of_keys(tmp_path):
    found = entries(SAMPLES)
    del found[b"__keys__"]
    write_lmdb(tmp_path / "set", found)
    assert packed(tmp_path / "set", tmp_path / "pack") == SAMPLES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.lst", b"", "a.lst: is empty"),
        ("a.lst", b"0\t1\n", "line 1: '0 1', expected number, label, path"),
        ("a.lst", b"0\t1\tx\0.jpg\n", "line 1: '0 1 x.x00.jpg', expected number, label, path"),
        ("a.lst", b"0\t-1\tx.jpg\n", "label '-1', expected an integer from 0"),
        ("a.lst", b"0\tnan\tx.jpg\n", "label 'nan', expected"),
        ("a.lst", b"0\t1.5\tx.jpg\n", "label '1.5', expected"),
        ("a.lst", b"0\t4294967296\tx.jpg\n", "label '4294967296', expected"),
        ("a.lst", b"0\t1\tx.jpg\n", "x.jpg"),
        ("a.tar", b"no tar", "a.tar: "),
        ("a.lmdb", b"no database", "a.lmdb: "),
        ("a.zip", b"", "a.zip: expected a folder of identities, a .lst"),
    ],
)
def test_damaged_sources_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, OSError), match=message):
        packed(tmp_path / name, tmp_path / "pack")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"1.jpg": b""}, "a.tar, 1: .jpg, expected an image and its class in a .cls"),
        ({"1.cls": b"1", "1.txt": b""}, "1: .cls, .txt, expected an image"),
        ({"1.cls": b"x", "1.jpg": b""}, "1: label 'x', expected"),
        ({"1.cls": b"1", "1.jpg": b"no"}, "1: 2 bytes; expected an image"),
    ],
)
def test_tars_without_image_or_class(tmp_path, found, message):
    write_tar(tmp_path / "a.tar", found)
    with pytest.raises(InputError, match=message):
        packed(tmp_path / "a.tar", tmp_path / "pack")


def test_a_tar_that_is_cut_off(tmp_path):
    write_tar(tmp_path / "a.tar", members(SAMPLES))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"a.tar: unexpected end of data"):
        packed(tmp_path / "a.tar", tmp_path / "pack")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({b"0": b"\xc1"}, "key 0: expected msgpack"),
        ({b"0": msgpack.packb(3)}, "key 0: msgpack of int, expected a list"),
        ({b"0": msgpack.packb([b"x"])}, r"key 0: expected msgpack of \[image, class\]"),
        ({b"0": msgpack.packb([b"x", "y"])}, "key 0: label 'y'"),
        ({b"__keys__": msgpack.packb([b"0"])}, "key 0: not there"),
        ({b"__keys__": msgpack.packb([1])}, "key __keys__: expected msgpack of a list of keys"),
        ({b"__len__": msgpack.packb(0)}, "no images to pack"),
    ],
)
def test_lmdb_sets_of_other_things(tmp_path, found, message):
    write_lmdb(tmp_path / "set.lmdb", found)
    with pytest.raises(InputError, match=message):
        packed(tmp_path / "set.lmdb", tmp_path / "pack")


def test_what_was_begun_is_not_gone_on_with_under_other_classes(tmp_path, monkeypatch):
    for number, (_, content) in enumerate(SAMPLES[:4]):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    listing = "".join(f"1\t{number}.jpg\t{{}}\n" for number in range(4))
    (tmp_path / "a.lst").write_text(listing.format(0, 0, 1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(pack_writer, "_finalize", None)
        with pytest.raises(TypeError):
            packed(tmp_path / "a.lst", tmp_path / "pack")
    assert (tmp_path / "pack/.packing/journal").stat().st_size == 4 * 16
    (tmp_path / "a.lst").write_text(listing.format(0, 1, 2, 2))
    assert [label for label, _ in packed(tmp_path / "a.lst", tmp_path / "pack")] == [0, 1, 2, 2]


def test_what_is_streamed_is_not_shuffled(tmp_path):
    write_tar(tmp_path / "a.tar", members(SAMPLES))
    with pytest.raises(InputError, match=r"a.tar: --shuffle requires folders"):
        packed(tmp_path / "a.tar", tmp_path / "pack", PackOptions(size=32, shuffle=1))
    with pytest.raises(InputError, match="none: no such file or folder"):
        open_source(tmp_path / "none", allow_empty=False)
