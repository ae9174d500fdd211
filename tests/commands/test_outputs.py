"""What a command writes: never over another call's output; names and damaged images are kept track of."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.calling import called
from helpers.faces import face, write_pack

from partialfc.data import RecordDataset
from partialfc.data.packs.names import folders_of, read_names, write_names
from partialfc.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photographs(tmp_path) -> Path:
    for name, first in (("zoe", 0), ("ann\tlee", 10), ("Jürgen", 20)):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for image in range(4):
            (tmp_path / "faces" / name / f"{image}.jpg").write_bytes(face(first, image))
    return tmp_path / "faces"


def content(folder: Path) -> dict[str, bytes]:
    return {str(it.relative_to(folder)): it.read_bytes() for it in sorted(folder.rglob("*")) if it.is_file()}


def ok(*arguments: object) -> str:
    done = called(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object) -> str:
    done = called(*arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.stderr


def test_a_pack_whose_name_was_taken_for_the_output_is_not_overwritten(tmp_path):
    write_pack(tmp_path / "pack", 10, 2)
    rest, held = tmp_path / "rest", tmp_path / "held"
    ok("split", tmp_path / "pack", rest, held, "--identities", 3)
    before = content(held)
    told = refused("merge", rest, held)
    assert (
        told
        == f"error: merge: expected at least two packs and a folder for the result, got {rest} and {held}\n"
    )
    told = refused("merge", tmp_path / "pack", rest, held)
    assert (
        f"error: {held}: expected a folder that is missing, empty, or created by the same command, got "
        in told
    )
    assert "made by: partialfc split" in told and "; pass --overwrite" in told
    assert content(held) == before
    assert "20 images of 10 identities" in ok("merge", rest, held, tmp_path / "both")
    ok("merge", rest, held, tmp_path / "both")  # the same call
    ok("merge", rest, tmp_path / "pack", held, "--overwrite")
    assert RecordDataset(held).num_classes == 17


@pytest.mark.parametrize(
    "command",
    [
        ("pack", "faces", "OUT"),
        ("unpack", "PACK", "OUT"),
        ("merge", "PACK", "PACK", "OUT"),
        ("split", "PACK", "OUT", "other", "--identities", "2"),
        ("split", "PACK", "other", "OUT", "--identities", "2"),
        ("check", "PACK", "--repair", "OUT"),
        ("clean", "RUN", "PACK", "OUT"),
        ("relabel", "RUN", "PACK", "OUT"),
        ("overlap", "PACK", "unseen.bin", "OUT"),
        ("export", "RUN", "OUT"),
        ("embed", "RUN", "PACK", "OUT"),
    ],
    ids=lambda it: " ".join(it[:2]),
)
def test_nothing_is_written_into_a_folder_of_others(run, pack, photographs, tmp_path, command):
    places = {"RUN": run, "OUT": tmp_path / "photographs", "PACK": pack, "faces": photographs}
    shutil.copytree(photographs, places["OUT"])
    before = content(places["OUT"])
    names = {"other": tmp_path / "other", "unseen.bin": pack / "unseen.bin"}
    told = refused(*(places.get(word, names.get(word, word)) for word in command))
    assert "expected a folder that is missing, empty, or created by the same command" in told
    assert content(places["OUT"]) == before
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("pairs", "pairs.txt", "faces", "OUT"),
        ("evaluate", "RUN", "--json", "OUT"),
        ("inspect", "PACK", "--grid", "OUT"),
        ("plot", "RUN", "--out", "OUT"),
        ("report", "RUN", "--out", "OUT"),
        ("embed", "RUN", "faces", "OUT.npz"),
    ],
    ids=lambda it: it[0],
)
def test_no_file_is_replaced(run, pack, photographs, tmp_path, command):
    mine = tmp_path / "mine.npz"
    mine.write_text("mine")
    places = {"RUN": run, "OUT": mine, "OUT.npz": mine, "PACK": pack, "faces": photographs}
    assert f"error: {mine}: exists already; pass --overwrite to replace it\n" == refused(
        *(places.get(word, word) for word in command)
    )
    assert mine.read_text() == "mine"
    places |= {"OUT": tmp_path, "OUT.npz": tmp_path / "x.csv"}
    told = refused(*(places.get(word, word) for word in command))
    assert "expected the name of a file, got a folder" in told or "expected the name of an .npz file" in told


def test_a_call_that_fails_leaves_no_folder_behind(tmp_path):
    refused("merge", tmp_path / "none", tmp_path / "nor this", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    refused("merge", tmp_path / "none", tmp_path / "nor this", tmp_path / "empty")
    assert not any((tmp_path / "empty").iterdir())


def test_names_of_identities_stay_with_a_pack(photographs, run, tmp_path):
    ok("pack", photographs, tmp_path / "pack", "--size", 32)
    assert read_names(tmp_path / "pack") == {0: "Jürgen", 1: "ann\tlee", 2: "zoe"}
    ok("merge", tmp_path / "pack", tmp_path / "pack", tmp_path / "twice")
    assert read_names(tmp_path / "twice") == dict(enumerate(["Jürgen", "ann\tlee", "zoe"] * 2))
    ok("split", tmp_path / "twice", tmp_path / "rest", tmp_path / "held", "--identities", 2, "--seed", 3)
    held = read_names(tmp_path / "held")
    assert sorted([*held.values(), *read_names(tmp_path / "rest").values()]) == sorted(
        ["Jürgen", "ann\tlee", "zoe"] * 2
    )
    for folder in ("rest", "held"):
        images = RecordDataset(tmp_path / folder)
        for index in range(len(images)):
            name = read_names(tmp_path / folder)[images.label(index)]
            assert images.encoded_image(index) in {it.read_bytes() for it in (photographs / name).iterdir()}
    ok("unpack", tmp_path / "pack", tmp_path / "images")
    assert {it.name for it in (tmp_path / "images").iterdir() if it.is_dir()} == {"Jürgen", "ann\tlee", "zoe"}
    ok("unpack", tmp_path / "twice", tmp_path / "numbered")  # names of two identities each
    assert {it.name for it in (tmp_path / "numbered").iterdir() if it.is_dir()} == set("012345")
    ok(
        "relabel",
        run,
        tmp_path / "pack",
        tmp_path / "relabelled",
        "--merge-threshold",
        1,
        "--split-threshold",
        -1,
    )
    assert read_names(tmp_path / "relabelled") == read_names(tmp_path / "pack")
    lines = (tmp_path / "relabelled/map.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "1", "2"] and "zoe" in lines[2]


def test_names_are_written_as_they_are(tmp_path):
    names = {0: "a\tb", 3: "c\\td\\", 7: "e\nf\r", 9: "\udcff", 11: "", 12: "\\\\n"}
    write_names(tmp_path, names)
    assert read_names(tmp_path) == names
    (tmp_path / "identities.tsv").write_text("0\tann\nbea\n")
    with pytest.raises(
        InputError, match=r"identities\.tsv: line 2: expected a label, a tab and a name, got 'bea'"
    ):
        read_names(tmp_path)
    unsafe = {0: "../a", 1: "b", 2: "c", 3: "c", 4: ".d", 5: "/e", 6: "..", 7: ""}
    assert folders_of(unsafe, 8) == ["0", "b", "2", "3", "4", "5", "6", "7"]
    assert folders_of({0: "2", 1: "10"}, 3) == ["0", "10", "2"]  # the number of a class without a name
    assert folders_of({0: "1", 1: "0"}, 2) == ["1", "0"]


@pytest.mark.parametrize("skip", [False, True])
def test_all_damaged_images_are_listed(photographs, tmp_path, skip):
    for name, image in (("zoe", 1), ("Jürgen", 3)):
        (photographs / name / f"{image}.jpg").write_bytes(b"" if image == 1 else b"\xff\xd8\xff no more")
    out = tmp_path / "pack"
    if not skip:
        told = refused("pack", photographs, out, "--size", 32)
        assert f"{out}: 2 unreadable images, listed in {out}/damaged.txt; the first: " in told
        assert "pass --skip-damaged to skip them" in told and not (out / "train.rec").exists()
    told = ok("pack", photographs, out, "--size", 32, "--skip-damaged")  # goes on where the other ended
    assert "10 images of 3 identities" in told and "2 unreadable images skipped" in told
    lines = (out / "damaged.txt").read_text().splitlines()
    assert len(lines) == 2 and "3.jpg" in lines[0] and "zoe/1.jpg" in lines[1]
    labels = RecordDataset(out).labels()
    assert np.bincount(labels).tolist() == [3, 4, 3]


def test_a_listing_has_a_root_of_its_own(photographs, tmp_path):
    (tmp_path / "lists").mkdir()
    listing = tmp_path / "lists/train.lst"
    listing.write_text("".join(f"{it}\t{it // 2}\tzoe/{it}.jpg\n" for it in range(4)))
    assert "4 images of 2 identities" in ok(
        "pack", listing, tmp_path / "pack", "--root", photographs, "--size", 32
    )
    assert "zoe/0.jpg" in refused("pack", listing, tmp_path / "other", "--size", 32)


def test_other_kinds_of_inputs_are_one_line(run, pack, photographs, tmp_path):
    assert "20 pairs, 10 of one person; all images are readable" in ok("check", pack / "unseen.bin")
    shutil.copytree(run, tmp_path / "runs/first")
    told = refused("report", tmp_path / "runs", "--out", tmp_path / "page.html")
    assert (
        f"{tmp_path}/runs: expected the folder of a run, with metrics.jsonl; it contains runs: {tmp_path}/runs/first"
        in told
    )
    (tmp_path / "pairs.txt").write_text("1\n")
    assert "expected the name of a file, got a folder" in refused(
        "pairs", tmp_path / "pairs.txt", photographs, tmp_path
    )


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
def test_a_checkout_that_cannot_be_written_to_says_where_else_an_environment_may_be():
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's, which others may not enter
        place = Path(folder)
        shutil.copy(ROOT / "environment.sh", place)
        for name in ("requirements.txt", "pyproject.toml"):
            (place / name).touch()
        place.chmod(0o555)
        become = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        script = "source ./environment.sh; make_environment requirements.txt"
        environment = os.environ | {"PARTIALFC_VENV": ""}
        done = subprocess.run(
            [*become, "bash", "-c", script],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
        )
        place.chmod(0o755)
    assert done.returncode == 2
    assert done.stderr == f"{folder} is not writable; set PARTIALFC_VENV to a folder for the environment\n"


def test_a_source_whose_identities_all_have_too_few_images_shifts_no_name(photographs, tmp_path):
    (tmp_path / "few/only").mkdir(parents=True)
    (tmp_path / "few/only/0.jpg").write_bytes(face(40, 0))
    ok("pack", tmp_path / "few", photographs, tmp_path / "pack", "--size", 32, "--min-images", 2)
    assert read_names(tmp_path / "pack") == {0: "Jürgen", 1: "ann\tlee", 2: "zoe"}
    ok("check", tmp_path / "pack", "--repair", tmp_path / "repaired")
    assert read_names(tmp_path / "repaired") == read_names(tmp_path / "pack")
