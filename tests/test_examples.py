"""The examples run as they stand, and a stranger's loop trains as ours does."""

import io
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import kubernetes_validate
import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
import train_ddp
import yaml
from helpers.calling import called_tool
from helpers.ranks import RankPool
from helpers.runs import config_of, curve, trained

from partialfc.__main__ import main
from partialfc.backbones import build_backbone
from partialfc.config import (
    AdamW,
    ElasticArcFace,
    HeadConfig,
    IResNetTiny,
    MobileFaceNetConfig,
    MultiStepSchedule,
    SyntheticData,
)
from partialfc.data import synthetic
from partialfc.data.loader import Batch, BatchLoader, StepFlags
from partialfc.data.packs.unpack import unpack_pack
from partialfc.launching import launcher
from partialfc.training import run

EXAMPLES = Path(__file__).parents[1] / "examples"

STEPS = 20


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the kind that the quickstart draws, smaller."""
    folder = tmp_path_factory.mktemp("drawn")
    synthetic.ensure_pack(folder, SyntheticData(identities=60, images=5, unseen=20, pairs=20))
    return folder


def example(name: str, arguments: list[str]) -> str:
    """What a rank of the script prints, which is run as it stands, in a process that has a group already."""
    with (
        mock.patch.object(dist, "init_process_group"),
        mock.patch.object(dist, "destroy_process_group"),
        mock.patch.object(sys, "argv", [name, *arguments]),
        redirect_stdout(io.StringIO()) as printed,
    ):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return printed.getvalue()


def losses_of(ranks: RankPool, world_size: int, *arguments: object) -> list[float]:
    printed = ranks.run(world_size, example, "train_ddp.py", [str(it) for it in arguments])
    assert not any(printed[1:])
    return [float(loss) for loss in re.findall(r"step \d+: loss (\S+)", printed[0])]


def batches_of_the_example(loader: BatchLoader, start: int, stop: int, notices: object) -> Iterator[Batch]:
    dataset, dist_ctx = loader._samples._dataset, loader._dist_ctx
    for number in range(start, stop):
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(len(dataset), (train_ddp.BATCH,), generator=generator)
        pixels, labels = zip(*(dataset[int(it)] for it in chosen), strict=True)
        images = torch.from_numpy(np.stack(pixels)).chunk(dist_ctx.world_size)[dist_ctx.rank]
        yield Batch(images, torch.tensor(labels), data_wait_seconds=0.0, num_replaced=0, flags=StepFlags())


def new_network(_: object) -> torch.nn.Module:
    network = train_ddp.new_network()
    network.input_size = train_ddp.SIZE
    return network


def by_our_trainer(folder: Path, output: Path) -> None:
    config = msgspec.structs.replace(
        config_of(folder, output, train={"global_batch_size": train_ddp.BATCH, "length": STEPS}),
        backbone=IResNetTiny(input_size=train_ddp.SIZE, embedding_size=train_ddp.WIDTH),
        loss=ElasticArcFace(scale=16),
        head=HeadConfig(sample_rate=0.5),
        optim=AdamW(lr=train_ddp.LR, max_grad_norm=0),
        schedule=MultiStepSchedule(milestones=(1000,)),
        seed=0,
    )
    with (
        mock.patch.object(run, "build_backbone", new_network),
        mock.patch.object(BatchLoader, "batches", batches_of_the_example),
    ):
        trained(config)


@pytest.fixture(scope="module")
def ours(ranks, drawn, tmp_path_factory) -> list[float]:
    output = tmp_path_factory.mktemp("ours")
    ranks.run(2, by_our_trainer, drawn, output)
    return curve(output)


@pytest.mark.parametrize("options", [[], ["--fsdp"]], ids=["DistributedDataParallel", "fully_shard"])
def test_a_strangers_loop_trains_as_ours_and_resumes_on_another_number_of_ranks(
    ranks, drawn, tmp_path, ours, options
):
    losses = losses_of(ranks, 2, drawn, tmp_path / "a", "--steps", 12, *options)
    losses += losses_of(
        ranks, 1, drawn, tmp_path / "b", "--steps", STEPS, "--resume", tmp_path / "a", *options
    )
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, ours, rtol=1e-5)


def test_the_kubernetes_example_is_what_its_schema_says():
    documents = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
    assert [it["kind"] for it in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    (container,) = documents[1]["spec"]["template"]["spec"]["containers"]
    (command,) = container["args"]
    with mock.patch.object(launcher, "launch", return_value=7) as launch, pytest.raises(SystemExit) as ended:
        main([*command.removeprefix("exec partialfc ").split(), "device=cpu", "--ranks=4"])
    assert ended.value.code == 7
    config, ranks = launch.call_args.args[0].validate()
    assert config.output == "/data/output" and ranks == 4 and launch.call_args.args[0].nodes == 2


def test_examples_are_short():
    """At most 60 lines that are not blank."""
    for path in EXAMPLES.glob("*.py"):
        assert sum(map(bool, path.read_text().splitlines())) <= 60, path


def script(name: str, *arguments: object) -> str:
    done = called_tool(EXAMPLES / name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_network_of_others_is_trained_on_and_used(drawn, tmp_path):
    """As state_dicts of the ArcFace repository are: its MobileFaceNet, by DistributedDataParallel."""
    network = build_backbone(MobileFaceNetConfig())
    torch.save(
        {f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "weights.pth"
    )
    few = [
        "train.length=2",
        "train.global_batch_size=8",
        "train.micro_batch_size=8",
        "data.num_workers=0",
        "schedule.warmup=1",
        "device=cpu",
        "evaluation.batch_size=16",
    ]
    printed = script(
        "finetune.py", tmp_path / "weights.pth", "mobilefacenet", drawn, tmp_path / "tuned", *few
    )
    assert re.search(r"^unseen: [\d.]+% right before, [\d.]+% after$", printed, re.MULTILINE), printed
    gallery = tmp_path / "gallery"
    unpack_pack(drawn, gallery)
    for person in sorted(gallery.iterdir())[5:]:
        shutil.rmtree(person)
    faces = sorted((gallery / "03").glob("*.jpg"))
    probe = faces[0].rename(tmp_path / "probe.jpg")
    printed = script("inference.py", tmp_path / "tuned", gallery, probe, "--threshold", -1)
    assert re.fullmatch(rf"{probe}: \d+, -?[\d.]+\n", printed), printed
    # Of a network that has learnt nothing all are alike.
    printed = script("inference.py", tmp_path / "tuned", gallery, faces[1], "--threshold", 1.1)
    assert "unknown (nearest " in printed
