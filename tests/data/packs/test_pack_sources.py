"""Folders of images and listings of pairs become packs that read back, whatever the machine."""

from pathlib import Path

import numpy as np
import pytest
from helpers.calling import called_tool
from helpers.faces import face

from partialfc.data import RecordDataset, images
from partialfc.data.packs.pack_sources import PackOptions, pack_images
from partialfc.data.packs.pack_writer import write_pack
from partialfc.data.recordio import RecordFile
from partialfc.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two identities of two JPEGs and one PNG that is too large, and files that are no images."""
    for name, numbers in {"b": (1, 0), "a": (10, 9)}.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in numbers:
            (tmp_path / "faces" / name / f"{number:02d}.jpg").write_bytes(face(ord(name), number))
    (tmp_path / "faces/a/notes.txt").write_text("no image")
    (tmp_path / "faces/.hidden").mkdir()
    return tmp_path / "faces"


def test_a_folder_reads_back_in_sorted_order_with_its_jpeg_bytes(folder, tmp_path):
    assert pack_images([folder], tmp_path / "pack", PackOptions(size=32)) == (2, 4)
    records = RecordFile(tmp_path / "pack/train.rec")
    expected = [
        (0, face(ord("a"), 9)),
        (0, face(ord("a"), 10)),
        (1, face(ord("b"), 0)),
        (1, face(ord("b"), 1)),
    ]
    assert [(int(records[key][0].label), bytes(records[key][1])) for key in range(1, 5)] == expected
    assert (tmp_path / "pack/property").read_text() == "2,32,32\n"
    assert {path.name for path in (tmp_path / "pack").iterdir()} == {
        "identities.tsv",
        "property",
        "train.idx",
        "train.rec",
    }


def test_the_layout_is_that_of_the_ms1m_packs(folder, tmp_path):
    pack_images([folder], tmp_path / "pack", PackOptions(size=32))
    records = RecordFile(tmp_path / "pack/train.rec")
    assert records.keys == range(7)
    header, payload = records[0]
    assert header.flag == 2 and header.label.tolist() == [5, 7] and len(payload) == 0
    assert [records[key][0].label.tolist() for key in (5, 6)] == [[1, 3], [3, 5]]
    assert [records[key][0].id for key in range(7)] == list(range(7))


def test_packing_twice_gives_the_same_bytes(folder, tmp_path):
    pack_images([folder], tmp_path / "one", PackOptions(size=48))
    pack_images([folder], tmp_path / "two", PackOptions(size=48))
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_images_of_another_size_are_resized(folder, tmp_path):
    pack_images([folder], tmp_path / "pack", PackOptions(size=48))
    dataset = RecordDataset(tmp_path / "pack")
    expected = images.decode(face(ord("b"), 1), 48)
    pixels, label = dataset[3]
    assert label == 1 and np.abs(pixels.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("largest", [16_777_217, 100_000_000])
def test_classes_beyond_float32_stand_in_id2(tmp_path, largest):
    labels = [largest, 5, 16_777_216, largest - 1]
    samples = [(label, face(label, 0)) for label in labels]
    assert write_pack(tmp_path, samples, size=32, num_classes=largest + 1) == (len(set(labels)), 4)
    assert (tmp_path / "property").read_text() == f"{largest + 1},32,32,id2\n"
    dataset = RecordDataset(tmp_path)
    assert dataset.num_classes == largest + 1
    assert [dataset.label(sample) for sample in range(4)] == labels


def test_images_out_of_order_have_no_identity_records(tmp_path):
    write_pack(tmp_path, [(1, face(1, 0)), (0, face(0, 0)), (1, face(1, 1))], size=32)
    records = RecordFile(tmp_path / "train.rec")
    assert records.keys == range(4) and records[0][0].label.tolist() == [4, 6]
    assert [label for _, label in RecordDataset(tmp_path)] == [1, 0, 1]


def test_bad_folders_are_refused_and_leave_no_pack(folder, tmp_path):
    with pytest.raises(InputError, match="none: no such file or folder"):
        pack_images([tmp_path / "none"], tmp_path / "pack")
    with pytest.raises(InputError, match=r"faces/a: contains no folders"):
        pack_images([folder / "a"], tmp_path / "pack")
    (folder / "c").mkdir()
    with pytest.raises(InputError, match=r"faces/c: contains no images; expected .bmp, .jpeg"):
        pack_images([folder], tmp_path / "pack")
    (folder / "c/0.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 unreadable images, .*faces/c/0.jpg: 8 bytes; expected an image"):
        pack_images([folder], tmp_path / "pack")
    assert {path.name for path in (tmp_path / "pack").iterdir()} == {".packing", "damaged.txt"}


def test_identities_with_few_images_are_left_out_and_the_others_renumbered(folder, tmp_path):
    (folder / "aa").mkdir()
    for label in (2, 3):
        for image in range(3):
            (folder / str(label)).mkdir(exist_ok=True)
            (folder / str(label) / f"{image}.jpg").write_bytes(face(label, image))
    assert pack_images([folder], tmp_path / "pack", PackOptions(size=32, min_images=3)) == (2, 6)
    dataset = RecordDataset(tmp_path / "pack")
    assert [dataset.label(sample) for sample in range(6)] == [0, 0, 0, 1, 1, 1]
    assert dataset.encoded_image(0) == face(2, 0) and dataset.encoded_image(5) == face(3, 2)


def test_identities_of_several_inputs_are_kept_apart(folder, tmp_path):
    assert pack_images([folder, folder], tmp_path / "pack", PackOptions(size=32)) == (4, 8)
    dataset = RecordDataset(tmp_path / "pack")
    assert [dataset.label(sample) for sample in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [dataset.encoded_image(sample) for sample in range(4)] == [
        dataset.encoded_image(sample) for sample in range(4, 8)
    ]


def test_a_shuffled_pack_holds_the_same_images(folder, tmp_path):
    pack_images([folder, folder], tmp_path / "plain", PackOptions(size=32))
    found = {}
    for seed in (1, 2):
        pack_images([folder, folder], tmp_path / str(seed), PackOptions(size=32, shuffle=seed))
        dataset = RecordDataset(tmp_path / str(seed))
        found[seed] = [(dataset.label(it), dataset.encoded_image(it)) for it in range(len(dataset))]
    plain = RecordDataset(tmp_path / "plain")
    whole = sorted((plain.label(it), plain.encoded_image(it)) for it in range(8))
    assert found[1] != found[2]
    assert sorted(found[1]) == sorted(found[2]) == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "--size 0: expected 1 to"),
        ({"quality": 101}, "--quality 101: expected 1 to 100"),
        ({"min_images": -1}, "--min-images -1: expected 0"),
        ({"shuffle": -1}, "--shuffle -1: expected 0"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        PackOptions(**settings)


def test_the_command_ends_on_a_bad_image_with_one_line(folder, tmp_path):
    (folder / "b/01.jpg").write_bytes(b"no image")
    tool = Path(__file__).parents[3] / "tools/pack_recordio.py"
    done = called_tool(tool, folder, tmp_path / "pack")
    message = (
        f"the first: {folder}/b/01.jpg: 8 bytes; expected an image that OpenCV can read; pass --skip-damaged"
    )
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
