"""A run of arcface_torch, from the files that its code leaves, goes on as a plain dense loop from the same files does."""

import json
import re
from pathlib import Path

import msgspec
import pytest
import torch
from helpers.calling import called
from helpers.runs import CLASSES, config_of, trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from partialfc.backbones import build_backbone
from partialfc.config import SGD, ArcFace, Config
from partialfc.data.augment import network_input
from partialfc.recipe import dump
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import read_tensors
from partialfc.training import schedule
from partialfc.training.run import build_run

FILES, DONE, TOTAL = 3, 10, 30  # 23 classes: 8, 8, 7
# The rates are low: a network of PReLUs has kinks, and what rounding does there, which another processor or number of
# ranks does otherwise, grows with the steps.
SGD_RECIPE = {"name": "sgd", "lr": 0.002, "weight_decay": 5e-4, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05}


def recipe(pack: Path, output: Path, optim: dict[str, object]) -> Config:
    sections: dict[str, dict[str, object]] = {
        "backbone": {"dropout": 0.0},
        "head": {"sample_rate": 1.0, "matmul_precision": "float32"},
        "optim": optim,
        "train": {"length": TOTAL, "micro_batch_size": 24 // FILES},
    }
    margin = ArcFace(margin=0.3, scale=16.0)
    return msgspec.structs.replace(config_of(pack, output, **sections), loss=margin)


class Plain:
    """Their trainer in one process: all parameters in two groups of one optimizer, a clipped backbone, ArcFace."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(5)
        self.config, self.run = config, build_run(config, comm.create_dist_context(torch.device("cpu")))
        self.backbone = build_backbone(config.backbone)
        self.centers = nn.Parameter(0.01 * torch.randn(CLASSES, config.backbone.embedding_size))
        is_sgd = isinstance(config.optim, SGD)
        kind, extra = (torch.optim.SGD, {"momentum": 0.9}) if is_sgd else (torch.optim.AdamW, {})
        self.optimizer = kind(
            [{"params": self.backbone.parameters()}, {"params": [self.centers]}],
            lr=config.optim.lr, weight_decay=config.optim.weight_decay, **extra,
        )  # fmt: skip

    def steps(self, start: int, stop: int) -> list[float]:
        return [
            self._step(number, batch)
            for number, batch in enumerate(self.run.loader.batches(start, stop), start)
        ]

    def _step(self, number: int, batch) -> float:
        config, per_epoch = self.config, self.run.steps_per_epoch
        rate = schedule.learning_rate(
            config.schedule, number, peak=config.optim.lr, total_steps=TOTAL, steps_per_epoch=per_epoch
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.backbone.train()
        parts = network_input(batch.images).split(24 // FILES)
        embeddings = normalize(torch.cat([self.backbone(part) for part in parts]))
        cosine = embeddings @ normalize(self.centers).T
        target = torch.arange(CLASSES) == batch.labels[:, None]
        with_margin = torch.cos(torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7)) + 0.3)
        loss = cross_entropy(16 * torch.where(target, with_margin, cosine), batch.labels, ignore_index=-1)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.backbone.parameters(), 5)
        self.optimizer.step()
        return loss.item()


def write_files(plain: Plain, folder: Path, step: int) -> None:
    """checkpoint_gpu_R.pt, as train_v2.py writes them on so many GPUs."""
    folder.mkdir()
    whole, first = plain.optimizer.state_dict(), 0
    last = whole["param_groups"][1]["params"][0]
    for rank in range(FILES):
        rows = slice(first, first := first + CLASSES // FILES + (rank < CLASSES % FILES))
        kept = {
            name: it[rows].clone() if isinstance(it, Tensor) and it.ndim else it
            for name, it in whole["state"][last].items()
        }
        content = {
            "epoch": 2,
            "global_step": step,
            "state_dict_backbone": plain.backbone.state_dict(),
            "state_dict_softmax_fc": {"weight": plain.centers.detach()[rows].clone()},
            "state_optimizer": {**whole, "state": {**whole["state"], last: kept}},
            "state_lr_scheduler": {
                "base_lr": 0.02,
                "max_steps": TOTAL,
                "last_epoch": step,
                "_last_lr": [0.01, 0.01],
            },
        }
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")


def plainly(config: Config, folder: Path) -> list[float]:
    """Write the files after some steps; the losses of the others."""
    plain = Plain(config)
    plain.steps(0, DONE)
    write_files(plain, folder, DONE)
    return plain.steps(DONE, TOTAL)


@pytest.fixture(scope="module")
def theirs(ranks, pack, tmp_path_factory):
    """Of either optimizer: the folder of the files, and how their loss goes on."""
    made = {}
    for name, optim in {"sgd": SGD_RECIPE, "adamw": ADAMW}.items():
        folder = tmp_path_factory.mktemp(name)
        (losses,) = ranks.run(1, plainly, recipe(pack, folder / "unused", optim), folder / "theirs")
        made[name] = (folder / "theirs", losses)
    return made


def imported(folder: Path, config: Config, path: Path):
    """By the command."""
    (path / "recipe.yaml").write_text(dump(config))
    return called("import", folder, path / "recipe.yaml")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_next_20_steps_are_those_of_a_plain_loop(ranks, pack, tmp_path, theirs, name, world_size):
    folder, losses = theirs[name]
    config = recipe(pack, tmp_path / "run", {"sgd": SGD_RECIPE, "adamw": ADAMW}[name])
    done = imported(folder, config, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"imported to {tmp_path}/run/checkpoints/latest at step 10; continue with: partialfc train\n"
    )
    ranks.run(world_size, trained, config)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]
    assert found == pytest.approx(losses, rel=1e-5)
    assert (
        f"# changed after step 10: imported from 3 files of {folder}"
        in (tmp_path / "run/recipe.yaml").read_text()
    )


def test_a_moving_average_begins_as_the_imported_network(pack, tmp_path, theirs):
    config = recipe(pack, tmp_path / "run", SGD_RECIPE | {"ema_decay": 0.999})
    assert imported(theirs["sgd"][0], config, tmp_path).returncode == 0
    average, network = (
        read_tensors(tmp_path / "run/checkpoints/latest", it) for it in ("average", "backbone")
    )
    assert network.keys() == average.keys()
    assert all(torch.equal(average[name], it) for name, it in network.items())


def centers_of(content: dict) -> dict:
    return content["state_dict_softmax_fc"]


def last_state_of(content: dict) -> dict:
    """State of the optimizer for the centers."""
    return content["state_optimizer"]["state"][content["state_optimizer"]["param_groups"][1]["params"][0]]


CHANGES = {
    "another step": lambda it: it.update(global_step=11),
    "a negative step": lambda it: it.update(global_step=-7),
    "a huge step": lambda it: it.update(global_step=10**30),
    "fewer classes": lambda it: centers_of(it).update(weight=centers_of(it)["weight"][:-1]),
    "NaN centers": lambda it: centers_of(it)["weight"][2, 3].fill_(torch.nan),
    "a number for centers": lambda it: centers_of(it).update(weight=1.5),
    "a number for a weight": lambda it: it["state_dict_backbone"].update({"conv1.weight": 3}),
    "infinite moments": lambda it: last_state_of(it)["momentum_buffer"][0, 0].fill_(torch.inf),
    "no moments": lambda it: last_state_of(it).clear(),
    "no optimizer": lambda it: it.pop("state_optimizer"),
    "another kind": lambda it: it.update(state_optimizer=[1]),
    "of adamw": lambda it: (last_state_of(it).clear(), last_state_of(it).update(exp_avg=torch.zeros(1))),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("another step", r"checkpoint_gpu_1.pt: is at step 11, checkpoint_gpu_0.pt is at step 10"),
        (
            "fewer classes",
            r"gpu_1.pt: class centers \[7, 16\]; expected \[8, 16\], of the recipe's backbone.embedding_size and",
        ),
        (
            "no moments",
            "gpu_1.pt: class centers: the optimizer keeps nothing; the recipe's requires momentum_buffer",
        ),
        (
            "no optimizer",
            "gpu_1.pt: expected a file of save_all_states: Object missing required field `state_optimizer`",
        ),
        ("another kind", "gpu_1.pt: expected a file of save_all_states: Expected `object`, got `array`"),
        (
            "of adamw",
            r"gpu_1.pt: class centers: the optimizer keeps exp_avg \[1\]; the recipe's requires momentum_buffer \[8, 16\]",
        ),
        (
            "a negative step",
            "gpu_1.pt: expected a file of save_all_states: Expected `int` >= 0 - at `.*global_step`",
        ),
        ("a huge step", "gpu_1.pt: is at step 10{30}, checkpoint_gpu_0.pt is at step 10"),
        ("NaN centers", "gpu_1.pt: class centers: expected finite numbers, got 1 of 128 that are not"),
        ("a number for centers", "gpu_1.pt: class centers: expected a tensor, got 1.5"),
        ("a number for a weight", "gpu_1.pt: conv1.weight: expected a tensor, got 3"),
        (
            "infinite moments",
            "gpu_1.pt: class centers: momentum_buffer of the optimizer: expected finite numbers, got 1 of 128",
        ),
        (
            "gone",
            "checkpoint_gpu_0.pt, checkpoint_gpu_2.pt; expected checkpoint_gpu_0.pt and so on, for every rank",
        ),
        ("damaged", "gpu_1.pt: incomplete: 7 bytes"),
        ("there before", "never, but .* exists; choose another `output`"),
        ("another network", "gpu_0.pt: weights of a different network; .* of a different shape"),
        ("momentum", "optim.momentum: expected 0.9, as in arcface_torch"),
    ],
)
def test_files_that_do_not_fit_are_named(pack, tmp_path, theirs, changed, message):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in theirs["sgd"][0].iterdir():
        content = torch.load(path, weights_only=True)
        if path.stem.endswith("1"):
            CHANGES.get(changed, lambda it: None)(content)
        torch.save(content, folder / path.name)
    config = recipe(pack, tmp_path / "run", SGD_RECIPE | ({"momentum": 0.0} if changed == "momentum" else {}))
    if changed == "gone":
        (folder / "checkpoint_gpu_1.pt").unlink()
    if changed == "damaged":
        (folder / "checkpoint_gpu_1.pt").write_bytes(b"PK\x03\x04 no")
    if changed == "there before":
        assert imported(folder, config, tmp_path).returncode == 0
    if changed == "another network":
        config = config_of(pack, tmp_path / "run", backbone={"width": 8})
    done = imported(folder, config, tmp_path)
    assert done.returncode == 2 and re.search(message, done.stderr) and done.stderr.count("\n") == 1, (
        done.stderr
    )


def test_a_step_beyond_the_recipe_is_refused(pack, tmp_path, theirs):
    config = recipe(pack, tmp_path / "run", SGD_RECIPE)
    short = msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, length=9))
    done = imported(theirs["sgd"][0], short, tmp_path)
    assert done.returncode == 2
    assert "gpu_0.pt: is at step 10; expected at most 9, the recipe's train.length" in done.stderr


def test_a_backbone_with_a_prefix_keeps_its_moments(pack, tmp_path, theirs):
    (tmp_path / "theirs").mkdir()
    for path in theirs["sgd"][0].iterdir():
        content = torch.load(path, weights_only=True)
        named = content["state_dict_backbone"]
        content["state_dict_backbone"] = {f"module.{name}": it for name, it in named.items()}
        torch.save(content, tmp_path / "theirs" / path.name)
    for folder, output in ((tmp_path / "theirs", "a"), (theirs["sgd"][0], "b")):
        assert imported(folder, recipe(pack, tmp_path / output, SGD_RECIPE), tmp_path).returncode == 0
    one, two = (read_tensors(tmp_path / it / "checkpoints/latest", "backbone_moments") for it in "ab")
    assert one.keys() == two.keys() and all(torch.equal(one[name], it) for name, it in two.items())
    assert any(it.any() for it in one.values())
