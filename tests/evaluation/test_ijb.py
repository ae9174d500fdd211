"""IJB's protocols against plain loops over all that a made-up folder says."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from helpers.calling import called
from ijb_folder import Made, made
from safetensors.torch import save_file
from sklearn.metrics import roc_curve

from partialfc.backbones import build_backbone
from partialfc.config import IResNetTiny
from partialfc.errors import InputError
from partialfc.evaluation import metrics
from partialfc.evaluation.identification import identify, identify_insightface
from partialfc.evaluation.ijb import IJBSet, load_ijb
from partialfc.inference.recognizer import METADATA_KEY

FARS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


@pytest.fixture(scope="module")
def ijb(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("ijb") / "IJBC")


def embeddings_of(made: Made) -> torch.Tensor:
    """Of no network: near a direction of the subject, of any length."""
    draws = np.random.default_rng(1)
    centers = draws.normal(size=(100, 16))
    rows = [centers[made.subjects[it]] + 2.6 * draws.normal(size=16) for it in made.templates]
    return torch.tensor(np.array(rows) * draws.uniform(0.5, 2, (len(rows), 1)), dtype=torch.float32)


def plain_templates(made: Made, embeddings: np.ndarray) -> dict[int, np.ndarray]:
    found = {}
    for template in sorted(set(made.templates)):
        its = [i for i, it in enumerate(made.templates) if it == template]
        total = np.zeros(embeddings.shape[1])
        for medium in {made.media[i] for i in its}:
            of_medium = [embeddings[i] * made.scores[i] for i in its if made.media[i] == medium]
            total += np.mean(of_medium, axis=0)
        found[template] = total / np.linalg.norm(total)
    return found


def plain_curve(scores: np.ndarray, same: np.ndarray) -> tuple[list[float], list[float]]:
    """Every threshold, the strictest first."""
    thresholds = sorted(set(scores), reverse=True)
    false = [(scores[~same] >= it).mean() for it in thresholds]
    return [0.0, *false], [0.0, *((scores[same] >= it).mean() for it in thresholds)]


def test_scores_are_those_of_plain_loops(ijb):
    embeddings = embeddings_of(ijb)
    templates = plain_templates(ijb, embeddings.double().numpy())
    scores = np.array([templates[a] @ templates[b] for a, b, _ in ijb.pairs])
    same = np.array([label == 1 for *_, label in ijb.pairs])
    found = load_ijb(ijb.folder).evaluate(embeddings).scores
    false, true = plain_curve(scores, same)
    for far in FARS:
        name = f"far=1e-{round(-math.log10(far))}"
        assert found[f"tar@{name}"] == max(t for f, t in zip(false, true, strict=True) if f <= far)
    assert next(iter(found)) == "tar@far=1e-4"
    expected = plain_identification(ijb, templates)
    assert {name: it for name, it in found.items() if "rank" in name or "tpir" in name} == pytest.approx(
        expected
    )
    assert 0 < found["rank1"] < found["rank5"] and found["tpir@fpir=1e-1"] < found["rank1"]


def plain_identification(made: Made, templates: dict[int, np.ndarray]) -> dict[str, float]:
    each = []
    for gallery in made.galleries:
        known = {made.subjects[it]: templates[it] for it in gallery}
        mated = [it for it in made.probes if made.subjects[it] in known]
        strangers = [
            max(templates[it] @ other for other in known.values()) for it in made.probes if it not in mated
        ]
        own = [templates[it] @ known[made.subjects[it]] for it in mated]
        place = [
            sum(templates[it] @ other >= mine for other in known.values())
            for it, mine in zip(mated, own, strict=True)
        ]
        # of 12 strangers one may be accepted at 0.1: the threshold is the second largest; 0.01 is beyond them
        threshold = sorted(strangers)[-2]
        rates = {f"rank{k}": np.mean([it <= k for it in place]) for k in (1, 5, 10)}
        each.append(rates | {"tpir@fpir=1e-1": np.mean([it > threshold for it in own])})
    found = {name: float(np.mean([it[name] for it in each])) for name in each[0]}
    known = {made.subjects[it]: templates[it] for gallery in made.galleries for it in gallery}
    others = sorted(
        templates[probe] @ other
        for probe in made.probes
        for subject, other in known.items()
        if subject != made.subjects[probe]
    )
    own = [templates[it] @ known[made.subjects[it]] for it in made.probes]
    for k in (1, 5, 10):
        better = [
            sum(templates[it] @ other >= mine for other in known.values())
            for it, mine in zip(made.probes, own, strict=True)
        ]
        found[f"insightface_rank{k}"] = np.mean([it <= k for it in better])
    for name, share in (("1e-2", 0.01), ("1e-1", 0.1)):
        threshold = others[-math.ceil(share * len(made.probes))]
        found[f"insightface_tpir@fpir={name}"] = np.mean([it > threshold for it in own])
    return found


def test_the_nearest_far_is_taken_at_a_corner_of_the_curve():
    """By brute force over the corners: thresholds at which the curve turns, and its ends."""
    draws = np.random.default_rng(2)
    for _ in range(20):
        same = draws.random(60) < 0.4
        scores = np.round(draws.normal(size=60) + same, 1)  # many are equal
        false, true = plain_curve(scores, same)
        steps = [
            (round((f1 - f0) * (~same).sum()), round((t1 - t0) * same.sum()))
            for f0, f1, t0, t1 in zip(false, false[1:], true, true[1:], strict=False)
        ]
        turns = [
            i for i in range(2, len(steps)) if steps[i] != steps[i - 1]
        ]  # as its first step is not looked at
        kept = [0, 1, *turns, len(steps)]
        rates, tars = (it[::-1] for it in roc_curve(same, scores)[:2])
        for far in (0.001, 0.01, 0.1, 0.35):
            theirs = min(zip(np.abs(rates - far), range(len(rates)), strict=True))[1]
            nearest = min((abs(false[i] - far), -false[i], -true[i]) for i in kept)
            (found,) = metrics.insightface_tars_at_fars(scores, same, [far])
            assert found == pytest.approx(-nearest[2])
            assert found == tars[theirs]  # as the script takes it from scikit-learn's curve


def test_a_face_is_aligned_by_its_points(ijb):
    loaded = load_ijb(ijb.folder)
    assert len(loaded) == len(ijb.names)
    for index in range(0, len(loaded), 7):
        difference = loaded.pixels(index, 112).astype(int) - ijb.faces[index]
        assert np.abs(difference[8:-8, 8:-8]).mean() < 8  # twice interpolated
    small = loaded.pixels(3, 56)
    assert small.shape == (56, 56, 3)


def test_the_command_says_it_on_any_number_of_ranks(ijb, tmp_path):
    torch.manual_seed(0)
    settings = IResNetTiny(width=4, depths=(1, 1), input_size=32, embedding_size=16)
    about = {METADATA_KEY: json.dumps(msgspec.to_builtins(settings))}
    save_file(build_backbone(settings).state_dict(), tmp_path / "a.safetensors", about)
    arguments = [
        tmp_path / "a.safetensors",
        "--ijb",
        ijb.folder,
        "--device=cpu",
        "--json",
    ]
    done = called("evaluate", *arguments, tmp_path / "one.json")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ tar@far=1e-4 +\d+\.\d\d% *$", done.stdout, re.MULTILINE), done.stdout
    ranks = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "partialfc",
        "evaluate",
    ]
    command = [sys.executable, *ranks, *map(str, arguments), str(tmp_path / "two.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" tar@far=1e-4") == 1
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two and 0 <= one["sets"]["ijbc"]["scores"]["rank1"] <= 1
    assert one["model"]["run"] is None and one["sets"]["ijbc"]["sha256"] is None


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("name_5pts_score", r"^1\.png (\S+)", "1.png nan", "line 1: expected finite numbers after 1.png"),
        ("name_5pts_score", r"^2\.png \S+ ", "2.png ", "line 2: 11 fields; expected 12"),
        ("name_5pts_score", r"^2\.png \S+ ", "2.png x ", "line 2: expected 11 numbers after 2.png"),
        ("face_tid_mid", r"^3\.png", "4.png", "line 3: 4.png; the list of points has 3.png there"),
        ("face_tid_mid", r"^3\.png.*\n", "", "the list of points has 3.png there"),
        ("face_tid_mid", r"^1\.png \d+", "1.png x", "line 1: 1.png x .*; expected name template media"),
        ("template_pair_label", r"\A10 ", "9 ", "template 9 has no images"),
        ("face_tid_mid", r"^1\.png \d+", "1.png --1", "line 1: 1.png --1 .*; expected name template media"),
        ("template_pair_label", r"\A10 (\d+) \d", r"10 \1 2", "pair 1 has the label 2; expected 0 or 1"),
        ("template_pair_label", r"\A10 ", "a ", "expected integers only"),
        ("template_pair_label", r"\A10 ", "", "numbers; expected 3 in each line"),
        ("1N_gallery_G1", r"^10,0", "10,x", "line 2: expected TEMPLATE_ID,SUBJECT_ID"),
        ("1N_gallery_G1", r"^13,1", "13,0", "line 5: template 13 of a second subject, 1|subject 0 is in the gallery twice"),
        ("1N_probe_mixed", r"^11,0,", "11,99,", "of a second subject|subject 99 of a probe is in no gallery"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(ijb, tmp_path, file, old, new, message):
    suffix = "csv" if file.startswith("1N") else "txt"
    for path in (ijb.folder / "meta").iterdir():
        text = path.read_text()
        if path.name == f"ijbc_{file}.{suffix}":
            text, count = re.subn(old, new, text, flags=re.MULTILINE)
            assert count
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta" / path.name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_ijb(tmp_path).evaluate(embeddings_of(ijb))


def test_a_set_without_galleries_has_no_search(ijb, tmp_path):
    (tmp_path / "meta").mkdir()
    for name in ("name_5pts_score", "face_tid_mid", "template_pair_label"):
        path = Path("meta") / f"ijbc_{name}.txt"
        (tmp_path / path).write_bytes((ijb.folder / path).read_bytes())
    assert not any("rank" in name for name in load_ijb(tmp_path).evaluate(embeddings_of(ijb)).scores)


def test_blocks_change_nothing(ijb, monkeypatch):
    embeddings = embeddings_of(ijb)
    expected = load_ijb(ijb.folder).evaluate(embeddings).scores
    monkeypatch.setattr("partialfc.evaluation.ijb._AT_ONCE", 7)
    monkeypatch.setattr("partialfc.evaluation.ijb._COSINES", 100)
    monkeypatch.setattr("partialfc.evaluation.identification._BLOCK", 20)
    assert load_ijb(ijb.folder).evaluate(embeddings).scores == expected


def test_its_curve_is_drawn_of_the_similarities_that_were_scored(ijb, monkeypatch):
    evaluated = load_ijb(ijb.folder).evaluate(embeddings_of(ijb))
    monkeypatch.delattr(IJBSet, "_pair_similarities")
    ((name, picture),) = evaluated.figures
    assert name == "roc" and picture.ndim == 3 and picture.std() > 10


def test_probes_without_any_mate_are_refused():
    one, two = np.eye(2, dtype=np.float32)[:1], np.eye(2, dtype=np.float32)[1:]
    for search in (identify, identify_insightface):
        with pytest.raises(
            InputError, match=r"no probe's subject is in the gallery|subject 1 of a probe is in no"
        ):
            search(one, np.array([1]), two, np.array([2]))


@pytest.mark.parametrize("search", [identify, identify_insightface])
def test_templates_that_are_not_finite_find_nobody(search):
    """No similarity is below NaN: such a probe would be found at rank 1 by everybody."""
    one = np.eye(3, dtype=np.float32)
    spoilt = one.copy()
    spoilt[1] = np.nan
    who = np.arange(3)
    with pytest.raises(InputError, match="probes: expected finite templates, got 1 of 3 that are not"):
        search(spoilt, who, one, who)
    with pytest.raises(InputError, match="gallery: expected finite templates, got 1 of 3 that are not"):
        search(one, who, spoilt, who)


def test_embeddings_that_are_not_finite_are_refused(ijb):
    embeddings = embeddings_of(ijb)
    embeddings[4] = torch.nan
    with pytest.raises(InputError, match=r"expected finite embeddings, got 1 of \d+ that are not"):
        load_ijb(ijb.folder).evaluate(embeddings)


def test_pairs_of_one_kind_have_no_rates(ijb):
    found = dataclasses.replace(one := load_ijb(ijb.folder), is_same=np.zeros_like(one.is_same)).evaluate(
        embeddings_of(ijb)
    )
    assert "all" in found.warning and "show different people" in found.warning
    assert np.isnan(found.scores["tar@far=1e-4"]) and "TAR@FAR 1e-4 -" in found.summary
    assert np.isfinite(found.scores["rank1"])


def spoil(ijb: Made, folder: Path, spoilt: dict[int, str]) -> None:
    """Copy a set, with other lines of points for some images."""
    shutil.copytree(ijb.folder / "meta", folder / "meta")
    (folder / "loose_crop").symlink_to(ijb.folder / "loose_crop")
    path = folder / "meta/ijbc_name_5pts_score.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    for image, kind in spoilt.items():
        lines[image][1:] = [*lines[image][1:11], "0"] if kind == "score" else ["7"] * 10 + lines[image][11:]
    path.write_text("".join(" ".join(line) + "\n" for line in lines))


def images_of(ijb: Made, template: int) -> list[int]:
    return [image for image, it in enumerate(ijb.templates) if it == template]


def test_unusable_images_are_refused_by_template_or_left_out(ijb, tmp_path):
    """All scores of a template are 0; two images of others have five equal points, one of them as the only one."""
    templates = sorted(set(ijb.templates))
    several = next(it for it in templates if len(images_of(ijb, it)) > 1)
    single = next(it for it in templates if len(images_of(ijb, it)) == 1)
    zero = next(it for it in reversed(templates) if it not in (several, single))
    spoilt = dict.fromkeys(images_of(ijb, zero), "score") | {
        images_of(ijb, it)[0]: "points" for it in (several, single)
    }
    spoil(ijb, tmp_path, spoilt)
    with pytest.raises(
        InputError, match=f"3 templates have unusable images.*template {zero}: only detector scores of 0"
    ):
        load_ijb(tmp_path)
    found = load_ijb(tmp_path, skip_unusable=True)
    gone = {zero, single}
    pairs = [(a, b, label) for a, b, label in ijb.pairs if not {a, b} & gone]
    assert found.num_templates == len(templates) - 2 and len(found.is_same) == len(pairs)
    kept = [
        image
        for image, template in enumerate(ijb.templates)
        if template not in gone and image != images_of(ijb, several)[0]
    ]
    assert [found.files[it] for it in range(len(found))] == [f"{it + 1}.png" for it in kept]
    evaluated = found.evaluate(embeddings_of(ijb)[kept])
    assert f"2 templates and {len(ijb.pairs) - len(pairs)} pairs are left out" in evaluated.warning
    file = f"{images_of(ijb, several)[0] + 1}.png"
    assert f"template {several}: {file} with five equal points" in evaluated.warning
    pooled = found.pool_templates(embeddings_of(ijb)[kept])
    assert (pooled.norm(dim=1) > 0.99).all()
