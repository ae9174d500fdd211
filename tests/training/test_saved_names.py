"""Names that checkpoints and random draws depend on, which no renaming of the code may change."""

import ast
from pathlib import Path

import msgspec
import pytest
from helpers.runs import config_of, trained

import partialfc
from partialfc.config import AdaFace, CurricularFace
from partialfc.runtime.checkpoint.manifest import read_manifest

COMMON = {"head.centers", "head.seen_classes", "head.steps", "loss_scale.streak", "loss_scale.value"}
RUNS = {
    "hard negatives": (
        {"optim": {"name": "sgd", "lr": 0.02}, "head": {"unsampled": "decay", "sampling": "hard"}},
        AdaFace(),
        {"head.last_step", "head.learning_rates", "head.momentum"}
        | {"head.neighbors", "head.neighbors_made", "head.neighbors_made_in"}
        | {"head.loss_norm_mean", "head.loss_norm_std"}
        | {"backbone_moments.conv1.weight.momentum_buffer"},
    ),
    "moving average": (
        {"optim": {"name": "adamw", "lr": 0.01, "ema_decay": 0.9}},
        CurricularFace(),
        {"head.counts", "head.first_moment", "head.second_moment", "head.loss_level"}
        | {f"backbone_moments.conv1.weight.{name}" for name in ("exp_avg", "exp_avg_sq", "step")}
        | {"average.conv1.weight"},
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_checkpoints_keep_their_names(pack, tmp_path, ranks, case):
    sections, margin, expected = RUNS[case]
    config = config_of(pack, tmp_path / "run", train={"length": 1}, schedule={"warmup": 0}, **sections)
    ranks.run(1, trained, msgspec.structs.replace(config, loss=margin))
    manifest = read_manifest(next((tmp_path / "run/checkpoints").glob("step_*")))
    weights = [name.removeprefix("backbone.") for name in manifest.tensors if name.startswith("backbone.")]
    others = {
        name
        for name in manifest.tensors
        if not name.startswith("backbone.")
        and not any(weight in name for weight in weights if weight != "conv1.weight")
    }
    assert {"conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked", "prelu.weight"} <= set(weights)
    assert others == COMMON | expected
    assert set(manifest.__struct_fields__) == {
        "number", "step", "seconds", "score", "about", "files", "tensors"
    }  # fmt: skip
    assert set(manifest.about) == {
        "config", "num_classes", "num_samples", "pack", "history", "origin", "layout"
    }  # fmt: skip


def test_random_draws_keep_their_purposes():
    calls = (
        node
        for path in Path(partialfc.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "derive_key"
    )
    purposes = {
        call.args[1].value for call in calls if len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
    }
    assert purposes == {
        "augment", "centers", "dropout", "face", "first of the runs", "flip", "held out", "margin", "marks", "noise",
        "order", "packing", "replacement", "rounding", "runs", "sample", "scene", "shown", "view", "window",
    }  # fmt: skip
