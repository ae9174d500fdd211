"""A plan is what a run takes: the head's memory against a process that steps it; and what plans say."""

import ctypes
import re
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from helpers import quick_start
from torch.testing._internal.distributed.fake_pg import FakeStore

from partialfc import plan
from partialfc.config import Config, load_config
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.plan import PlannedRun

RANKS = 2
M_MMAP_THRESHOLD = -3  # of mallopt(3)


def config_of(**sections: Any) -> Config:
    tree = {
        "data": {"path": "nowhere"},
        "train": {"length": 1, "global_batch_size": 512},
        "output": "nowhere",
    }
    tree["backbone"] = {"name": "iresnet_tiny", "embedding_size": 256}
    return msgspec.convert(tree | sections, Config)


def resident(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(config: Config, num_classes: int, pipe: Connection) -> None:
    """Bytes that the head of one rank of two takes at its peak, three steps long."""
    # What is freed goes back to the system at once: from its heap glibc gives it back, or not, as chance has it.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    torch.set_num_threads(1)
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    step_head(config, 1000)  # what the first use of each operation takes
    idle = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step_head(config, num_classes)
    pipe.send(resident("VmHWM") - idle)


def step_head(config: Config, num_classes: int) -> None:
    width, batch = config.backbone.embedding_size, config.train.global_batch_size
    head = PartialFC(num_classes, width, config.loss, config=config.head, optim=config.center_optimizer)
    follows = head.centers.follows_teacher
    ahead = head.prepare(torch.randperm(num_classes)[:batch], 0)
    for number in range(1, 4):
        step, ahead = ahead, head.prepare(torch.randperm(num_classes)[:batch], number)
        embeddings = torch.randn(batch // RANKS, width, requires_grad=True)
        head(embeddings, step).backward()
        head.update(step, 0.1, teacher=embeddings.detach() if follows else None)


CASES = {
    "sgd": {"head": {"sample_rate": 0.1}},
    "all classes": {"head": {}, "backbone": {"name": "iresnet_tiny", "embedding_size": 64}},
    "adamw": {"head": {"sample_rate": 0.1}, "optim": {"name": "adamw"}},
    "bfloat16": {"head": {"sample_rate": 0.2, "centers_dtype": "bfloat16", "optim_state_dtype": "none"}},
    "decay": {"head": {"sample_rate": 0.2, "unsampled": "decay"}},
    "host": {"head": {"sample_rate": 0.2, "memory": "host"}},
    "teacher": {"head": {"sample_rate": 0.2}, "distillation": {"teacher_embeddings": "nowhere"}},
    "sub-centres": {
        "head": {
            "sample_rate": 0.2,
            "subcenters": 3,
            "centers_dtype": "bfloat16",
            "optim_state_dtype": "none",
        }
    },
    "hard": {"head": {"sample_rate": 0.2, "sampling": "hard", "hard_refresh_steps": 8000}},
    "no budget": {"head": {"sample_rate": 0.3, "logits_budget": 0}},
}


@pytest.mark.parametrize("name", CASES)
def test_the_heads_memory_is_within_a_tenth_of_the_plan(name):
    config, num_classes = config_of(**CASES[name]), 300_000
    receiver, sender = Pipe(duplex=False)
    process = quick_start.started(measure, config, num_classes, sender)
    sender.close()
    measured = receiver.recv()
    process.join()
    job = PlannedRun(config, num_classes, RANKS, device="cpu")
    planned = sum(job.head_memory().values()) + sum(job.host_memory().values())
    assert measured == pytest.approx(planned, rel=0.1)


def test_the_largest_number_of_identities_fits_and_one_more_per_rank_does_not():
    job = PlannedRun(config_of(head={"sample_rate": 0.1}), 1000, 8)
    most = plan.max_identities(job, 4 << 30)
    backbone = sum(job.backbone_memory().values())
    here, more = (
        backbone + sum(PlannedRun(job.config, number, 8).head_memory().values())
        for number in (most, most + 8)
    )
    assert here <= 4 << 30 < more
    assert plan.max_identities(job, 1 << 20) == 0


@pytest.mark.parametrize("gigabytes", [1, 2, 3, 4, 6])
def test_the_largest_number_is_found_on_either_side_of_the_budget(gigabytes):
    """Where the logits no longer fit it, a run of more identities takes less memory."""
    config = config_of(
        head={"sample_rate": 0.5, "logits_budget": 1500}, train={"length": 1, "global_batch_size": 1024}
    )
    job = PlannedRun(config, 1, 8)
    backbone = sum(job.backbone_memory().values())
    step, found = 10_007, plan.max_identities(job, gigabytes << 30)
    fitting = [
        number
        for number in range(step, 30_000_000, step)
        if backbone + sum(PlannedRun(config, number, 8).head_memory().values()) <= gigabytes << 30
    ]
    assert fitting[-1] <= found < fitting[-1] + step


def test_halves_of_bytes_are_halves():
    full, half = (
        PlannedRun(config_of(head=head), 1_000_000, 8).head_memory()
        for head in ({}, {"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"})
    )
    assert full["class centers"] == 1_000_000 // 8 * 256 * 4 == 2 * half["class centers"]
    assert full["their moments"] == 2 * half["their moments"]


def test_what_is_sent_follows_the_rings():
    sent = PlannedRun(config_of(), 1000, 4).head_traffic()
    assert sent["embeddings, gathered"] == 3 * 128 * 256 * 4  # three blocks of a rank's 128
    assert sent["softmax"] == 2 * 3 * (2 * 512 * 8) // 4
    student = config_of(distillation={"teacher_embeddings": "nowhere"})
    taught = PlannedRun(student, 1000, 4).head_traffic()
    assert taught == sent | {"teacher embeddings, gathered": 3 * 128 * 256 * 4}
    alone = PlannedRun(student, 1000, 1)
    assert not any((alone.head_traffic() | alone.backbone_traffic()).values())


def test_parameters_and_activations_are_those_of_the_network():
    job = PlannedRun(
        config_of(backbone={"name": "iresnet50"}, train={"length": 1, "global_batch_size": 16}), 1000, 1
    )
    memory = job.backbone_memory()
    assert memory["backbone: parameters"] == 43_590_848 * 4
    half = PlannedRun(
        config_of(
            backbone={"name": "iresnet50"},
            train={"length": 1, "global_batch_size": 16},
            optim={"name": "sgd", "precision": "bfloat16"},
        ),
        1000,
        1,
    ).backbone_memory()
    activations = "backbone: activations, estimated"
    assert 0.5 <= half[activations] / memory[activations] < 0.6


def test_the_identities_are_those_of_the_pack(tmp_path, pack):
    assert plan.num_identities(config_of(data={"path": str(pack)})) == 23
    with pytest.raises(InputError, match=r"property: not found; pass --identities N"):
        plan.num_identities(config_of(data={"path": str(tmp_path)}))
    built_in = load_config(Path(__file__).parents[2] / "recipes/quickstart.yaml", [f"data.path={tmp_path}"])
    assert plan.num_identities(built_in) == 400
