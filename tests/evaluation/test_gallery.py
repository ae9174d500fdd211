"""Galleries searched for the people that probes show, against plain loops; TinyFace's lists; groups of sets; what is none."""

import dataclasses
import shutil
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.calling import called
from helpers.faces import face, write_pairs
from helpers.runs import config_of, trained, verification_of
from scipy.io import savemat

from partialfc.errors import InputError
from partialfc.evaluation.gallery import load_gallery
from partialfc.evaluation.loading import load_set, load_sets

PEOPLE = ("ann", "bea", "cem", "dan", "eva")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two or three images of each in the gallery, but one; distractors; probes of all."""
    for number, name in enumerate(PEOPLE):
        for place, count in (("gallery", 0 if name == "eva" else 2 + number % 2), ("probe", 3)):
            for image in range(count):
                path = tmp_path / "office" / place / name / f"{image}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(face(number, image + 10 * (place == "probe")))
    (tmp_path / "office/distractors").mkdir()
    for image in range(4):
        (tmp_path / f"office/distractors/{image}.jpg").write_bytes(face(50 + image, 0))
    return tmp_path / "office"


def test_ranks_and_rates_are_those_of_plain_loops(folder):
    found = load_gallery(folder)
    assert (found.name, len(found), found.gallery_size) == ("office", 10 + 4 + 15, 14)
    names = [path.parent.name for path in found.files]
    draws = np.random.default_rng(0)
    centers = {name: draws.normal(size=8) for name in [*PEOPLE, "distractors"]}
    rows = np.array([centers[name] + 1.5 * draws.normal(size=8) for name in names])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    places, mates, strangers = [], [], []
    for probe in range(14, 29):
        likes = [(unit[probe] @ unit[it], names[it] == names[probe]) for it in range(14)]
        own = [like for like, mate in likes if mate]
        others = [like for like, mate in likes if not mate]
        if not own:
            strangers.append(max(others))
            continue
        places.append(1 + sum(it >= max(own) for it in others))
        mates.append(max(own))
    expected = {f"rank{rank}": np.mean([it <= rank for it in places]) for rank in (1, 5, 20)}
    assert len(strangers) == 3  # too few to measure a rate
    evaluated = found.evaluate(torch.tensor(rows, dtype=torch.float32) * 7)
    scores = evaluated.scores
    assert scores == pytest.approx(expected) and 0 < scores["rank1"] < scores["rank5"]
    assert evaluated.summary.startswith("rank1 ")


def test_tinyface_is_read_as_it_is_released(folder, tmp_path):
    testing = tmp_path / "tinyface/Testing_Set"
    lists: dict[str, tuple[list[str], list[int]]] = {"gallery": ([], []), "probe": ([], [])}
    for place, folder_name in (("gallery", "Gallery_Match"), ("probe", "Probe")):
        (testing / folder_name).mkdir(parents=True)
        for path in sorted((folder / place).rglob("*.jpg")):
            name = f"{path.parent.name}_{path.name}"
            shutil.copy(path, testing / folder_name / name)
            lists[place][0].append(name)
            lists[place][1].append(PEOPLE.index(path.parent.name))
    shutil.copytree(folder / "distractors", testing / "Gallery_Distractor")
    for place, file in (("gallery", "gallery_match_img_ID_pairs.mat"), ("probe", "probe_img_ID_pairs.mat")):
        names, numbers = lists[place]
        key = "gallery" if place == "gallery" else "probe"
        column = np.array([[it] for it in names], dtype=object)  # cells, as MATLAB writes them
        savemat(testing / file, {f"{key}_set": column, f"{key}_ids": np.array(numbers)[:, None]})
    plain, found = load_gallery(folder), load_set(tmp_path / "tinyface")
    assert found.name == "tinyface" and len(found) == len(plain)
    embeddings = torch.randn(len(plain), 8, generator=torch.Generator().manual_seed(0))
    assert found.evaluate(embeddings).scores == plain.evaluate(embeddings).scores
    np.testing.assert_array_equal(found.pixels(20, 16), plain.pixels(20, 16))
    savemat(testing / "probe_img_ID_pairs.mat", {"probe_set": column, "probe_ids": np.array([1])})
    with pytest.raises(InputError, match=r"pairs.mat: 15 probe_set and 1 probe_ids; expected as many"):
        load_set(tmp_path / "tinyface")
    savemat(testing / "probe_img_ID_pairs.mat", {"probe_set": column})
    with pytest.raises(InputError, match=r"pairs.mat: no probe_set and probe_ids in it"):
        load_set(tmp_path / "tinyface")
    (testing / "probe_img_ID_pairs.mat").write_bytes(b"no such file" * 20)
    with pytest.raises(InputError, match=r"probe_img_ID_pairs.mat: expected a MATLAB file"):
        load_set(tmp_path / "tinyface")


def test_sets_that_belong_together_are_scored_each_and_by_their_deviation(tmp_path):
    (tmp_path / "rfw").mkdir()
    for place, name in enumerate(("african", "asian", "indian")):
        write_pairs(tmp_path / f"rfw/{name}.bin", 20 + 10 * place)
    group = load_set(tmp_path / "rfw")
    assert (group.name, len(group)) == ("rfw", 40 + 60 + 80)
    embeddings = torch.randn(len(group), 4, generator=torch.Generator().manual_seed(0))
    each = [load_set(path) for path in sorted((tmp_path / "rfw").iterdir())]
    accuracies, start = [], 0
    for one in each:
        accuracies.append(one.evaluate(embeddings[start : start + len(one)]).scores["accuracy"])
        start += len(one)
    evaluated = group.evaluate(embeddings)
    scores = evaluated.scores
    assert list(scores) == [
        "accuracy",
        "accuracy_deviation",
        "african_accuracy",
        "asian_accuracy",
        "indian_accuracy",
    ]
    assert list(scores.values()) == pytest.approx(
        [np.mean(accuracies), statistics.stdev(accuracies), *accuracies]
    )
    np.testing.assert_array_equal(group.pixels(41, 16), each[1].pixels(1, 16))
    assert evaluated.summary.startswith(f"accuracy {scores['accuracy']:.2%}, std ")


def test_a_run_is_evaluated_on_them_and_evaluate_says_the_same(ranks, pack, folder, tmp_path):
    sets = {"sets": [str(folder)], "batch_size": 16}
    config = config_of(pack, tmp_path / "run", evaluation=sets, train={"length": 4})
    ranks.run(2, trained, config)
    scores = verification_of(tmp_path / "run", 4)
    assert scores.keys() == {"unseen", "office"} and scores["office"].keys() == {"rank1", "rank5", "rank20"}
    assert "office: rank1 " in (tmp_path / "run/log.txt").read_text()
    done = called("evaluate", tmp_path / "run")
    assert done.returncode == 0 and f"{scores['office']['rank1']:.2%}" in done.stdout, (
        done.stderr,
        done.stdout,
    )
    done = called("evaluate", tmp_path / "run", folder)
    assert done.returncode == 0 and "unseen" not in done.stdout
    done = called("export", tmp_path / "run", tmp_path / "exported")
    assert done.returncode == 0 and "office" in (tmp_path / "exported/README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rm -r probe", "probe: no such folder"),
        ("rm -r gallery/*", "gallery: contains no images"),
        ("mv probe/ann/0.jpg probe", r"probe/0.jpg: is not in a person's folder; expected probe/PERSON/0.jpg"),
        ("rm -r gallery/[a-d]*; mkdir gallery/x; cp distractors/0.jpg gallery/x", "no probe shows a person of the gallery"),
        ("mv gallery other", r"office: expected a .bin file, or a folder of several, of IJB"),
    ],
)  # fmt: skip
def test_what_is_none_is_said(folder, change, message):
    subprocess.run(["bash", "-c", change], cwd=folder, check=True)
    with pytest.raises(InputError, match=message):
        load_set(folder)


def test_two_sets_of_one_name_are_refused(folder, tmp_path):
    write_pairs(tmp_path / "office.bin")
    with pytest.raises(
        InputError, match=r"office.bin, .*/office: two sets are named office; expected unique names"
    ):
        load_sets([tmp_path / "office.bin", folder])
    with pytest.raises(InputError, match=r"office.bin, .*office.bin: two sets are named office"):
        load_sets([tmp_path / "office.bin"] * 2)


def test_embeddings_that_are_not_finite_or_all_alike_are_refused(folder):
    gallery = load_gallery(folder)
    embeddings = torch.randn(len(gallery), 8)
    embeddings[2] = torch.nan
    with pytest.raises(InputError, match="office: expected finite embeddings, got 1 of 29 that are not"):
        gallery.evaluate(embeddings)
    with pytest.raises(InputError, match="office: expected embeddings that differ"):
        gallery.evaluate(torch.ones(len(gallery), 8))


def test_a_group_with_a_set_of_one_kind_has_no_mean(tmp_path):
    (tmp_path / "rfw").mkdir()
    for name in ("one", "two"):
        write_pairs(tmp_path / f"rfw/{name}.bin")
    group = load_set(tmp_path / "rfw")
    spoilt = dataclasses.replace(group.sets[0], is_same=np.ones(20, bool))
    found = dataclasses.replace(group, sets=[spoilt, group.sets[1]]).evaluate(torch.randn(len(group), 8))
    assert np.isnan(found.scores["accuracy"]) and np.isnan(found.scores["accuracy_deviation"])
    assert found.scores["two_accuracy"] > 0 and found.summary.startswith("accuracy -, std -: one -, two ")
    assert "one: scores are undefined" in found.warning
