"""benchmarks/relabel.py plants what it says, and finds it where a network tells people apart."""

import numpy as np
from helpers.calling import called_module
from helpers.faces import write_pack

from benchmarks import relabel
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.data.stored_embeddings import EmbeddingsInfo, open_array


def test_what_is_planted():
    labels = np.repeat(np.arange(9), [8, 8, 8, 8, 3, 5, 5, 5, 2])
    planted = relabel.plant_errors(labels, 9, 2)
    assert planted.count == 11 and len(planted.cut) == len(planted.joined) == 2
    for first, second in planted.cut:
        assert [np.count_nonzero(planted.labels == it) for it in (first, second)] == [4, 4]
        assert set(labels[planted.labels == second]) == {first}
    for label in planted.joined:
        whole = labels[planted.labels == label]
        assert len(set(whole)) == 2 and np.count_nonzero(whole == label) == 8


def test_planted_identities_are_found(tmp_path):
    classes, images, width = 12, 8, 16
    write_pack(tmp_path / "pack", classes, images)
    draws = np.random.default_rng(0)
    rows = np.repeat(np.eye(width)[:classes], images, axis=0) + 0.05 * draws.normal(
        size=(classes * images, width)
    )
    (tmp_path / "embeddings").mkdir()
    about = EmbeddingsInfo(
        pack_fingerprint(tmp_path / "pack"), "of a network", len(rows), width, done=len(rows)
    )
    about.write(tmp_path / "embeddings")
    stored = open_array(tmp_path / "embeddings", about, create=True)
    stored[:] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    stored.flush()
    command = ["benchmarks.relabel", tmp_path / "pack", tmp_path / "embeddings"]
    command += ["--identities", "3", "--size", "500"]
    found = called_module(*command).stdout.splitlines()
    assert found[:2] == [
        "3 of 3 identities that were cut are found, 0 others",
        "3 of 3 identities that were joined are found, 0 others",
    ]
    assert found[2].startswith("500 means of 16 components compared in ")
    write_pack(tmp_path / "pack", classes, images - 1)
    done = called_module(*command)
    assert done.returncode == 2 and "embeddings of a pack that differs from" in done.stderr
