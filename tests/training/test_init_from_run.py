"""A run begins with the centers of the identities that another knows, on any number of ranks."""

from pathlib import Path
from unittest import mock

import msgspec
import pytest
import torch
from helpers.faces import face, write_pack
from helpers.runs import CLASSES, SIZE, assert_refused, config_of, curve, trained

import partialfc
from partialfc.data.packs.pack_writer import write_pack as write_samples
from partialfc.errors import InputError
from partialfc.inference.stored_centers import read_centers
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import CheckpointManager, newest_checkpoint, read_rows
from partialfc.training import init_from_means, init_from_run
from partialfc.training.resume import start_or_resume
from partialfc.training.run import build_run

LABELS = [5, 4, None, 22, 0, None, 7, *range(8, 22)]  # of 21 identities, two of them new


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Path]:
    """A pack of other identities, and whom of the run's they are."""
    write_pack(tmp_path / "grown", len(LABELS), 2, SIZE)
    (tmp_path / "map.txt").write_text("".join(f"{'new' if it is None else it}\n" for it in LABELS))
    return tmp_path / "grown", tmp_path / "map.txt"


def centers(config) -> torch.Tensor:
    """A rank's, as it is built, of sources that are read in several blocks."""
    with mock.patch.object(init_from_run, "_ROWS", 10):
        return (
            build_run(config, comm.create_dist_context(torch.device("cpu")))
            .head.centers.tensors["centers"]
            .clone()
        )


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("head", [{}, {"centers_dtype": "bfloat16", "memory": "host"}], ids=str)
def test_known_identities_keep_their_centres(ranks, tmp_path, undisturbed, grown, world_size, head):
    pack, path = grown
    source = undisturbed[1][2]
    settings = {"centers": {"from": str(source), "map": str(path)}}
    drawn = torch.cat(ranks.run(world_size, centers, config_of(pack, tmp_path / "run", head=head)))
    found = torch.cat(
        ranks.run(world_size, centers, config_of(pack, tmp_path / "run", head=head, init=settings))
    )
    known = read_rows(newest_checkpoint(source / "checkpoints"), "head.centers", 0, CLASSES)
    for row, label in enumerate(LABELS):
        expected = drawn[row] if label is None else known[label].to(found.dtype)
        assert torch.equal(found[row], expected), row


@pytest.mark.parametrize("name", ["kernel", "weight"])
def test_a_head_of_others_gives_its_centres(ranks, tmp_path, undisturbed, grown, name):
    pack, path = grown
    known = torch.randn(CLASSES, 16)
    torch.save({name: known.T.contiguous() if name == "kernel" else known}, tmp_path / "header.pth")
    settings = {"centers": {"from": str(tmp_path / "header.pth"), "map": str(path)}}
    found = torch.cat(ranks.run(2, centers, config_of(pack, tmp_path / "run", init=settings)))
    kept = [row for row, label in enumerate(LABELS) if label is not None]
    assert torch.equal(found[kept], known[[LABELS[row] for row in kept]])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"fc": torch.zeros(16, 4)},
            r"header.pth has fc \(16, 4\); expected kernel \[D, C\] or weight \[C, D\]",
        ),
        ({"kernel": torch.zeros(16)}, r"header.pth has kernel \(16,\); expected kernel"),
        ({"kernel": torch.zeros(8, 21)}, "header.pth has embedding size 8; expected 16"),
        (
            {"kernel": torch.zeros(16, 9)},
            "header.pth has 9 identities, the pack has 21; expected init.centers.map",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_said(ranks, tmp_path, grown, tensors, message):
    torch.save(tensors, tmp_path / "header.pth")
    init = {"centers": {"from": str(tmp_path / "header.pth")}}
    config = config_of(grown[0], tmp_path / "run", init=init, train={"micro_batch_size": 12})
    assert_refused(ranks, 2, config, message)


def begun_centers(config) -> torch.Tensor:
    """A rank's, as the first step finds them, of images that are embedded in several blocks."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    checkpoints = CheckpointManager(Path(config.output) / "checkpoints", keep=1, dist_ctx=dist_ctx)
    with mock.patch.object(init_from_means, "_IMAGES", 3):
        return start_or_resume(config, dist_ctx, checkpoints, None)[0].head.centers.tensors["centers"].clone()


def test_new_identities_begin_as_the_mean_of_their_embeddings(ranks, tmp_path, undisturbed, grown):
    pack, path = grown
    source = undisturbed[1][2]
    sections = {"train": {"micro_batch_size": 8}, "evaluation": {"batch_size": 2}}
    drawn = torch.cat(ranks.run(1, centers, config_of(pack, tmp_path / "drawn", **sections)))
    known = read_rows(newest_checkpoint(source / "checkpoints"), "head.centers", 0, CLASSES)
    recognizer, dataset = partialfc.load(source), partialfc.RecordDataset(pack)
    for settings in (
        {"centers": {"from": str(source), "map": str(path), "new": "mean"}},
        {"centers": {"new": "mean"}},
    ):
        init = {"backbone": str(source), **settings}
        of_one, of_three = (
            torch.cat(
                ranks.run(size, begun_centers, config_of(pack, tmp_path / f"{size}", init=init, **sections))
            )
            for size in (1, 3)
        )
        assert torch.equal(of_one, of_three)
        for row, label in enumerate(LABELS):
            if label is not None and "from" in settings["centers"]:
                assert torch.equal(of_one[row], known[label])
                continue
            faces = [dataset[it][0] for it in range(len(dataset)) if dataset.label(it) == row]
            mean = torch.from_numpy(recognizer.embed(faces)).double().sum(dim=0)
            expected = (mean / mean.norm() * drawn[row].double().norm()).float()
            torch.testing.assert_close(of_one[row], expected, rtol=1e-4, atol=1e-6)


def test_a_mean_that_cannot_be_taken(ranks, tmp_path, undisturbed):
    """An identity without images keeps what was drawn, be it stored as it may; embeddings that are not finite are an error."""
    source = undisturbed[1][2]
    samples = [(label, face(label, 0, SIZE)) for label in (0, 2)]
    write_samples(tmp_path / "pack", samples, num_classes=4, size=SIZE)
    sections = {
        "train": {"micro_batch_size": 12},
        "head": {"centers_dtype": "bfloat16", "memory": "host", "sample_rate": 0.5},
    }
    init = {"backbone": str(source), "centers": {"new": "mean"}}
    drawn = torch.cat(ranks.run(2, centers, config_of(tmp_path / "pack", tmp_path / "a", **sections)))
    found = torch.cat(
        ranks.run(2, begun_centers, config_of(tmp_path / "pack", tmp_path / "b", init=init, **sections))
    )
    same = [torch.equal(found[row], drawn[row]) for row in range(4)]
    assert same == [False, True, False, True] and found.dtype == torch.bfloat16
    broken = {
        name: torch.full_like(it, torch.nan) if it.is_floating_point() else it
        for name, it in partialfc.load(source).network.state_dict().items()
    }
    torch.save(broken, tmp_path / "broken.pth")
    init["backbone"] = str(tmp_path / "broken.pth")
    config = config_of(tmp_path / "pack", tmp_path / "c", init=init, **sections)
    assert_refused(ranks, 2, config, r"init.centers.new: embeddings by .*/broken.pth are not finite")


def test_a_mean_wants_a_network_and_one_centre(pack, tmp_path):
    mean = {"new": "mean"}
    for sections, message in (
        ({"init": {"centers": mean}}, "requires init.backbone"),
        ({"init": {"centers": {}}}, "without `from` all identities are new; expected only `new: mean`"),
        (
            {"init": {"backbone": "b.pth", "centers": mean}, "head": {"subcenters": 2}},
            "init.centers.new: mean; requires head.subcenters: 1",
        ),
    ):
        with pytest.raises((InputError, msgspec.ValidationError), match=message):
            config_of(pack, tmp_path, **sections)


def test_with_all_of_a_run_training_goes_on_from_its_loss(ranks, pack, tmp_path, undisturbed):
    source = str(undisturbed[1][2])
    begun = {"train": {"length": 3, "micro_batch_size": 24}, "schedule": {"warmup": 0}, "optim": {"lr": 1e-4}}
    known = config_of(
        pack, tmp_path / "known", init={"backbone": source, "centers": {"from": source}}, **begun
    )
    drawn = config_of(pack, tmp_path / "drawn", init={"backbone": source}, **begun)
    for config in (known, drawn):
        ranks.run(1, trained, config)
    assert max(curve(tmp_path / "known")) < 0.2 * min(curve(tmp_path / "drawn"))


@pytest.mark.parametrize(
    ("text", "width", "message"),
    [
        (None, 16, "has 23 identities, the pack has 21; expected init.centers.map"),
        ("new\n" * 20, 16, "map.txt: 20 lines; expected one per identity of the pack, 21 identities"),
        (
            "new\n" * 20 + "23\n",
            16,
            "map.txt: line 21: '23'; expected a label of the other run, 0 to 22, or new",
        ),
        ("new\n-1\n", 16, "map.txt: line 2: '-1'; expected a label"),
        ("\xff\n", 16, "map.txt: not text"),
        ("new\n" * 21, 8, "init.centers: .* has embedding size 16; expected 8"),
    ],
)
def test_what_does_not_fit_is_said(ranks, tmp_path, undisturbed, grown, text, width, message):
    pack, path = grown
    settings = {"from": str(undisturbed[1][2]), "map": None if text is None else str(path)}
    path.write_text(text or "", encoding="latin-1")
    sections = {"backbone": {"embedding_size": width}, "train": {"micro_batch_size": 12}}
    config = config_of(pack, tmp_path / "run", init={"centers": settings}, **sections)
    assert_refused(ranks, 2, config, message)


def head_of_checkpoint(config, path) -> torch.Tensor:
    """The centers of a run after `settle`."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    checkpoints = CheckpointManager(Path(config.output) / "checkpoints", keep=1, dist_ctx=dist_ctx)
    run, _ = start_or_resume(config, dist_ctx, checkpoints, checkpoints.find_resume_point("auto"))
    run.head.settle()
    return run.head.centers.tensors["centers"].clone()


@pytest.mark.parametrize("centers", ["float32", "bfloat16"])
def test_rows_that_missed_steps_are_read_as_they_would_be(ranks, pack, tmp_path, centers):
    head = {"unsampled": "decay", "sample_rate": 0.1, "centers_dtype": centers}
    config = config_of(pack, tmp_path, head=head, optim={"weight_decay": 0.01}, train={"length": 20})
    ranks.run(2, trained, config)
    path = newest_checkpoint(tmp_path / "checkpoints")
    (settled,) = ranks.run(1, head_of_checkpoint, config, path)
    stored, found = read_rows(path, "head.centers", 0, CLASSES), read_centers(path, 0, CLASSES)
    assert not torch.equal(stored, found)
    torch.testing.assert_close(found, settled, rtol=1e-2 if centers == "bfloat16" else 1e-6, atol=1e-7)
    assert torch.equal(read_centers(path, 7, 15), found[7:15])
