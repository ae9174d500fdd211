"""A PartialFC is an honest module: what it holds is saved, what it cannot do it refuses, what it is given is checked."""

import copy
import io
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.ranks import mine
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from partialfc.config import SGD, AdamW, AnyOptimizer, CenterSGD, CosFace, FollowTeacher, HeadConfig
from partialfc.head import PartialFC

CLASSES, WIDTH, BATCH = 31, 5, 12
KINDS: dict[str, tuple[AnyOptimizer, dict[str, Any]]] = {
    "sgd": (SGD(), {}),
    "adamw": (AdamW(lr=0.01), {"sample_rate": 0.3}),
    "decay": (SGD(nesterov=True), {"sample_rate": 0.3, "unsampled": "decay"}),
    "host, bfloat16": (SGD(), {"sample_rate": 0.3, "memory": "host", "centers_dtype": "bfloat16"}),
}


def new_head(kind: str = "sgd", device: str = "cpu", **more: Any) -> PartialFC:
    optim, options = KINDS[kind]
    config = HeadConfig(**options)
    return PartialFC(CLASSES, WIDTH, CosFace(scale=8.0), config=config, optim=optim, device=device, **more)


def train(head: PartialFC, steps: int) -> list[float]:
    losses = []
    for number in range(head.steps, head.steps + steps):
        generator = torch.Generator().manual_seed(number)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        embeddings = mine_of(torch.randn(BATCH, WIDTH, generator=generator))
        step = head.prepare(labels, number)
        loss = head(embeddings.to(head.centers.device).requires_grad_(), step)
        loss.backward()
        head.update(step, 0.05, (loss < 1e9) & (number != 3))
        losses.append(loss.item())
    return losses


def mine_of(rows: Tensor) -> Tensor:
    return mine(rows) if dist.is_initialized() else rows


def saved_then_trained(kind: str, device: str, path: str) -> tuple[list[float], dict[str, Tensor]]:
    head = new_head(kind, device)
    train(head, 6)
    dcp.save({"model": {"head": head.state_dict()}}, checkpoint_id=path)
    return train(head, 4), {name: it.cpu() for name, it in head.centers.tensors.items()}


def loaded_then_trained(kind: str, device: str, path: str) -> tuple[list[float], dict[str, Tensor]]:
    head = new_head(kind, device, seed=0)
    train(head, 2)  # what it holds is to be replaced
    state = {"model": {"head": head.state_dict()}}
    dcp.load(state, checkpoint_id=path)
    head.load_state_dict(state["model"]["head"])
    assert head.steps == 6
    return train(head, 4), {name: it.cpu() for name, it in head.centers.tensors.items()}


@pytest.mark.parametrize(("saving", "loading"), [(1, 1), (3, 3), (3, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_anybodys_checkpoint_saves_and_reshards_it(ranks, device, tmp_path, kind, saving, loading):
    expected = ranks.run(saving, saved_then_trained, kind, device, str(tmp_path))
    found = ranks.run(loading, loaded_then_trained, kind, device, str(tmp_path))
    if saving == loading:
        assert [losses for losses, _ in found] == [losses for losses, _ in expected]
    rows, wanted = (
        {name: torch.cat([of_rank[name] for _, of_rank in of_ranks]).float() for name in of_ranks[0][1]}
        for of_ranks in (found, expected)
    )
    rounding = 0.01 if "bfloat16" in kind else 1e-5  # another sum may be rounded to another neighbor
    torch.testing.assert_close(found[0][0], expected[0][0], rtol=rounding, atol=rounding)
    torch.testing.assert_close(rows, wanted, rtol=rounding, atol=rounding)


def test_without_a_process_group_one_process_trains_and_saves(device, tmp_path):
    assert not dist.is_initialized()
    head = new_head("decay", device)
    train(head, 3)
    file = io.BytesIO()
    torch.save({"head": head.state_dict()}, file)
    file.seek(0)
    other = new_head("decay", device)
    other.load_state_dict(torch.load(file)["head"])
    assert train(other, 3) == train(head, 3)


def test_as_part_of_a_model_it_is_saved_under_its_name():
    model = nn.ModuleDict({"backbone": nn.Linear(3, WIDTH), "head": new_head()})
    state = model.state_dict()
    assert {
        "backbone.weight",
        "head.centers",
        "head.momentum",
        "head.seen_classes",
        "head.steps",
    } <= state.keys()
    model.load_state_dict(state)
    del state["head.momentum"]
    state["head.other"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r'(?s)Missing.*"head.momentum".*Unexpected.*"head.other"'):
        model.load_state_dict(state)
    state = model.state_dict() | {"head.centers": torch.zeros(CLASSES + 1, WIDTH)}
    with pytest.raises(RuntimeError, match=r"centers: expected \[31, 5\], got \[32, 5\]"):
        model.load_state_dict(state)


def of_two_ranks() -> tuple[str, list[int], list[int], bool]:
    head = new_head()
    state = head.state_dict()
    assert isinstance(state["centers"], DTensor)
    whole = torch.arange(CLASSES * WIDTH, dtype=torch.float32).view(CLASSES, WIDTH)
    head.load_state_dict(state | {"centers": whole})  # that of one process
    same = torch.equal(head.centers.tensors["centers"], mine_rows(whole))
    labels = head.gather_labels(torch.tensor([10 * dist.get_rank(), 5]))
    try:
        head(torch.zeros(2, WIDTH), head.prepare(torch.tensor([1, 2]), 0))
    except ValueError as error:
        return str(error), list(state["centers"].shape), labels.tolist(), same
    return "", [], [], False


def mine_rows(whole: Tensor) -> Tensor:
    return whole.split(16)[dist.get_rank()]


def test_local_labels_are_refused_and_gathered(ranks):
    for message, shape, labels, same in ranks.run(2, of_two_ranks):
        assert re.fullmatch(
            r"embeddings: expected floats \[1, 5\] on cpu, got float32 \[2, 5\] on cpu; step 0 was prepared with 2 labels "
            r"for 2 rank\(s\), and labels are those of the global batch \(see gather_labels\(\)\)",
            message,
        )
        assert shape == [CLASSES, WIDTH] and labels == [0, 5, 10, 5] and same


def gradients(reduction: str) -> Tensor:
    head = new_head(backbone_gradients=reduction)
    local = mine(torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))).requires_grad_()
    head(local, head.prepare(torch.tensor([1, 2, 3, 4]), 0)).backward()
    return local.grad


def test_where_backbones_take_the_mean_over_ranks_the_gradient_is_w_times_as_large(ranks):
    for summed, mean in zip(ranks.run(2, gradients, "sum"), ranks.run(2, gradients, "mean"), strict=True):
        torch.testing.assert_close(mean, 2 * summed)


@pytest.mark.parametrize("move", [nn.Module.double, nn.Module.half, lambda it: it.to("meta")])
def test_it_is_not_moved_or_converted(move):
    message = (
        r"a PartialFC cannot be converted from torch.float32 on cpu to .*; create another with PartialFC\("
    )
    with pytest.raises(RuntimeError, match=message):
        move(new_head())
    with pytest.raises(RuntimeError, match=message):
        move(nn.Sequential(new_head()))
    new_head().to("cpu").float()


def test_it_is_not_copied_or_pickled():
    for attempt in (copy.deepcopy, copy.copy, lambda it: torch.save(it, io.BytesIO())):
        with pytest.raises(
            RuntimeError, match="cannot be copied or pickled; create another and use load_state_dict"
        ):
            attempt(new_head())


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.zeros(4, 1, dtype=torch.int64), r"int64 \[4, 1\] on cpu"),
        (torch.zeros(4), r"float32 \[4\] on cpu"),
        (torch.zeros(0, dtype=torch.int64), r"int64 \[0\] on cpu"),
        (torch.zeros(4, dtype=torch.int64, device="meta"), r"int64 \[4\] on meta"),
    ],
    ids=str,
)
def test_labels_of_another_kind_are_refused(labels, found):
    with pytest.raises(
        ValueError, match=f"labels: expected integers \\[B\\] of the global batch, on cpu, got {found}"
    ):
        new_head().prepare(labels, 0)


@pytest.mark.parametrize(
    ("embeddings", "found"),
    [
        (torch.zeros(6, WIDTH), r"float32 \[6, 5\] on cpu"),
        (torch.zeros(1, WIDTH + 1), r"float32 \[1, 6\] on cpu"),
        (torch.zeros(1, WIDTH, dtype=torch.int64), r"int64 \[1, 5\] on cpu"),
        (torch.zeros(1, WIDTH, device="meta"), r"float32 \[1, 5\] on meta"),
    ],
    ids=str,
)
def test_one_label_takes_one_embedding(embeddings, found):
    head = new_head()
    with pytest.raises(ValueError, match=f"embeddings: expected floats \\[1, 5\\] on cpu, got {found}"):
        head(embeddings, head.prepare(torch.tensor([3]), 0))


def test_it_is_not_loaded_while_an_update_is_due():
    head = new_head()
    state = head.state_dict()
    step = head.prepare(torch.tensor([3]), 4)
    head(torch.ones(1, WIDTH, requires_grad=True), step)
    with pytest.raises(
        RuntimeError, match=r"load_state_dict\(\): call update\(\) or discard\(\) of step 4 first"
    ):
        head.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "got 0 classes, .*; expected positive numbers"),
        ({"backbone_gradients": "max"}, "backbone_gradients 'max'; expected .* 'sum' or 'mean'"),
        (
            {"optim": SGD(), "config": HeadConfig(optim=CenterSGD())},
            "optim and config.optim: expected one of them, got both",
        ),
        ({"optim": AdamW(), "config": HeadConfig(unsampled="decay")}, "head.unsampled: decay requires .*sgd"),
        (
            {"optim": AdamW(), "config": HeadConfig(optim_state_dtype="none")},
            "head.optim_state_dtype: none requires .*sgd",
        ),
        (
            {"optim": FollowTeacher(), "config": HeadConfig(unsampled="decay")},
            "decay .* follow a teacher",
        ),
    ],
)
def test_what_a_head_cannot_be_made_of_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PartialFC(**{"num_classes": 5, "embedding_size": 4, "loss": CosFace(), **arguments})
