"""The head in loops of others: what they usually do works, and what cannot work is refused in one line."""

import io
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.ranks import mine
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as helpers
from torch.nn.functional import cross_entropy, normalize, one_hot

from partialfc.config import SGD, AdamW, ArcFace, CenterSGD, CosFace, HeadConfig
from partialfc.head import PartialFC

CLASSES, WIDTH = 31, 8


def new_head(seed: int = 0, **options: Any) -> PartialFC:
    return PartialFC(CLASSES, WIDTH, CosFace(scale=8.0), config=HeadConfig(**options), seed=seed)


def train(head: PartialFC, first: int, last: int) -> list[float]:
    losses = []
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        labels = torch.randint(CLASSES, (6,), generator=generator)
        embeddings = torch.randn(6, WIDTH, generator=generator)
        local = (mine(embeddings) if dist.is_initialized() else embeddings).requires_grad_()
        step = head.prepare(labels, number)
        loss = head(local, step)
        loss.backward()
        head.update(step, 0.1)
        losses.append(loss.item())
    return losses


def by_torchs_helpers(folder: str) -> tuple[bool, set[str]]:
    torch.manual_seed(0)  # the same network on every rank
    model = nn.ModuleDict({"net": nn.Linear(4, WIDTH), "head": new_head(seed=1)})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train(model["head"], 0, 3)
    state, _ = helpers.get_state_dict(model, optimizer)
    names = set(state)
    dcp.save(state, checkpoint_id=folder)
    other = nn.ModuleDict({"net": nn.Linear(4, WIDTH), "head": new_head(seed=2)})
    into = helpers.get_model_state_dict(other)
    dcp.load(into, checkpoint_id=folder)
    helpers.set_model_state_dict(other, into)
    same = train(other["head"], 3, 5) == train(model["head"], 3, 5)
    return same and torch.equal(other["net"].weight, model["net"].weight), names


@pytest.mark.parametrize("world_size", [1, 2])
def test_torchs_helpers_for_state_dicts_save_and_load_a_model_with_a_head(ranks, tmp_path, world_size):
    for same, names in ranks.run(world_size, by_torchs_helpers, str(tmp_path)):
        assert (
            same
            and {"net.weight", "head.centers", "head.momentum", "head.seen_classes", "head.steps"} <= names
        )


def test_without_a_process_group_the_helpers_work_too():
    model = nn.ModuleDict({"net": nn.Linear(4, WIDTH), "head": new_head(seed=1)})
    state = helpers.get_model_state_dict(model)
    helpers.set_model_state_dict(model, state)
    assert "head.centers" in state


def test_an_attribute_that_is_none_is_none():
    with pytest.raises(AttributeError, match="'PartialFC' object has no attribute 'nothing'"):
        new_head().nothing  # noqa: B018


def second_derivative(loss_of: Any, embeddings: Tensor) -> Tensor:
    point = embeddings.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(point), point, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), point)[0]


def test_a_second_derivative_is_refused():
    head = PartialFC(20, WIDTH, CosFace(scale=8.0, margin=0.2), dtype=torch.float64)
    centers = head.state_dict()["centers"]
    labels, embeddings = torch.arange(6), torch.randn(6, WIDTH, dtype=torch.float64)

    def dense(point: Tensor) -> Tensor:
        cosines = normalize(point) @ normalize(centers).T
        return cross_entropy(8 * (cosines - 0.2 * one_hot(labels, 20)), labels)

    assert second_derivative(dense, embeddings).isfinite().all()
    with pytest.raises(RuntimeError, match="a PartialFC has no second derivatives"):
        second_derivative(lambda point: head(point, head.prepare(labels, 0)), embeddings)


@pytest.mark.parametrize("optim", [CenterSGD(weight_decay=5e-3), CenterSGD(weight_decay=5e-3, momentum=0.0)])
@pytest.mark.parametrize("memory", ["device", "host"])
def test_settled_rows_are_where_a_dense_optimizer_has_them(optim, memory):
    def head_with(**options: Any) -> PartialFC:
        config = HeadConfig(**options)
        return PartialFC(50, WIDTH, CosFace(), config=config, optim=optim, seed=1, dtype=torch.float64)

    def step(head: PartialFC, number: int, labels: Tensor, lr: float) -> None:
        taken = head.prepare(labels, number)
        embeddings = torch.ones(len(labels), WIDTH, dtype=torch.float64).requires_grad_()
        head(embeddings, taken).backward()
        head.update(taken, lr)

    head = head_with(sample_rate=0.1, unsampled="decay", memory=memory)
    for number in range(200):
        step(head, number, torch.arange(number, number + 4) % 50, 0.1)
    before = head.state_dict()["centers"].clone()
    head.settle()
    settled = head.state_dict()["centers"].clone()
    assert (settled - before).abs().max() > 1e-3 * settled.abs().max()
    head.settle()
    assert torch.equal(head.state_dict()["centers"], settled)  # nothing is left to do
    step(head, 200, torch.arange(50), 0.0)  # all rows catch up, and none moves
    torch.testing.assert_close(head.state_dict()["centers"], settled, rtol=1e-12, atol=1e-12)


def settled_or_not(settles: bool) -> list[float]:
    head = new_head(sample_rate=0.2, unsampled="decay")
    losses = train(head, 0, 20)
    if settles:
        head.prepare(torch.arange(6), 20)
        head.settle()
    return losses + train(head, 20, 40)


def test_a_run_that_settles_goes_on_as_it_would(ranks):
    for found, expected in zip(
        ranks.run(2, settled_or_not, True), ranks.run(2, settled_or_not, False), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-5)


def saved_on_the_first_rank(path: str, moved: bool) -> str:
    """What a load on every rank of what the first rank has saved says."""
    head = new_head(seed=1)
    if dist.get_rank() == 0:
        state = {name: it.cpu() if moved else it for name, it in head.state_dict().items()}
        torch.save(state, path)
    dist.barrier()
    other = new_head(seed=2)
    before = other.state_dict()["centers"].to_local().clone()
    try:
        other.load_state_dict(torch.load(path, weights_only=False))
    except RuntimeError as error:
        assert torch.equal(other.state_dict()["centers"].to_local(), before)
        return str(error)
    return "loaded"


@pytest.mark.parametrize("moved", [False, True])
def test_rows_of_another_rank_are_refused(ranks, tmp_path, moved):
    first, second = ranks.run(2, saved_on_the_first_rank, str(tmp_path / "head.pt"), moved)
    assert first == "loaded"
    assert (
        "expected rows of the classes 16 to 30, got those of 0 to 15, which another rank saved; save "
        "head.full_state_dict() on rank 0, or use torch.distributed.checkpoint" in second
    )


def saves_whole(path: str, options: dict[str, Any]) -> list[float]:
    head = new_head(seed=1, **options)
    train(head, 0, 5)
    state = head.full_state_dict()
    assert bool(state) == (dist.get_rank() == 0)
    if state:
        assert state["centers"].shape == (CLASSES, WIDTH) and state["centers"].device.type == "cpu"
        torch.save(state, path)
    return train(head, 5, 8)


def loads_whole(path: str, options: dict[str, Any]) -> list[float]:
    head = new_head(seed=1, **options)
    train(head, 0, 2)  # what it holds is to be replaced
    head.load_state_dict(torch.load(path, weights_only=True))
    return train(head, 5, 8)


@pytest.mark.parametrize(("saving", "loading"), [(1, 2), (2, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"sample_rate": 0.3, "unsampled": "decay"}], ids=str)
def test_a_whole_state_is_saved_by_one_rank_and_loads_at_any_world_size(
    ranks, tmp_path, saving, loading, options
):
    expected = ranks.run(saving, saves_whole, str(tmp_path / "head.pt"), options)
    for found in ranks.run(loading, loads_whole, str(tmp_path / "head.pt"), options):
        assert found == pytest.approx(expected[0], rel=1e-5)


def test_a_whole_state_needs_no_process_group(monkeypatch):
    head = new_head(seed=1)
    train(head, 0, 3)
    other = new_head(seed=2)
    other.load_state_dict(head.full_state_dict())
    assert train(other, 3, 5) == train(head, 3, 5)


def test_a_state_without_class_ids_is_loaded():
    """As version 0.2 has saved them."""
    head, other = new_head(seed=1), new_head(seed=2)
    state = {name: it for name, it in head.state_dict().items() if name != "class_ids"}
    other.load_state_dict(state)
    assert torch.equal(other.state_dict()["centers"], head.state_dict()["centers"])


@pytest.mark.parametrize("enabled", [True, False])
def test_a_step_that_a_scaler_skips_moves_no_center(enabled):
    network = nn.Linear(8, WIDTH)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, enabled=enabled)  # infinite times a gradient
    head = PartialFC(100, WIDTH, ArcFace(), optim=SGD())
    moved = []
    for number in range(60):
        images, labels = torch.randn(16, 8), torch.randint(100, (16,))
        before = network.weight.detach().clone(), head.state_dict()["centers"].clone()
        step = head.prepare(labels, number)
        loss = head(network(images), step)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        head.update(step, 0.1, scaler=scaler)
        scaler.update()
        after = network.weight.detach(), head.state_dict()["centers"]
        moved.append([not torch.equal(*it) for it in zip(before, after, strict=True)])
    assert all(of_network == of_head for of_network, of_head in moved)
    assert moved[-1] == [True, True] and (moved[0] == [True, True]) == (not enabled)
    assert all(it.isfinite().all() for it in head.centers.tensors.values())


def test_a_scaled_step_is_the_unscaled_one():
    rows = []
    for scale in (1.0, 1024.0):
        head, point = new_head(seed=1), torch.ones(2, WIDTH).requires_grad_()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD([point], 0.1)
        step = head.prepare(torch.tensor([1, 2]), 0)
        scaler.scale(head(point, step)).backward()
        scaler.step(optimizer)
        head.update(step, 0.1, scaler=scaler)
        rows.append(head.state_dict()["centers"])
    torch.testing.assert_close(*rows)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss_scale": 64.0}, ValueError, r"update\(loss_scale=\): expected finite= as well"),
        (
            {"scaler": 1, "loss_scale": 2.0},
            ValueError,
            r"update\(scaler=\): expected neither finite= nor loss_scale=",
        ),
        (
            {"scaler": 1},
            RuntimeError,
            r"call head.update\(\) after scaler.step\(optimizer\) and before scaler.update\(\)",
        ),
    ],
)
def test_a_scale_that_could_move_centers_by_mistake_is_refused(arguments, error, message):
    head, scaler = new_head(), torch.amp.GradScaler("cpu")
    step = head.prepare(torch.tensor([1]), 0)
    scaler.scale(head(torch.ones(1, WIDTH).requires_grad_(), step)).backward()
    scaler.update(2.0)  # too early
    with pytest.raises(error, match=message):
        head.update(step, 0.1, **arguments | ({"scaler": scaler} if "scaler" in arguments else {}))


def accumulated() -> None:
    head = new_head()
    for number in range(2):
        head(torch.ones(1, WIDTH).requires_grad_(), head.prepare(torch.tensor([1]), number)).backward()


MISTAKES = [
    (lambda: new_head()(torch.ones(2, WIDTH), torch.tensor([1, 2])), TypeError,
     r"forward\(\): expected a step, got int64 \[2\] on cpu; create one with step = head.prepare\(labels, number\)"),
    (lambda: new_head().update(torch.tensor([1, 2]), 0.1), TypeError, r"update\(\): expected a step, got int64"),
    (lambda: new_head().prepare([1, 2], 0), TypeError,
     r"labels: expected a tensor of integers \[B\] of the global batch, on cpu, got list"),
    (lambda: new_head().gather_labels([1, 2]), TypeError, r"labels: expected a tensor of integers \[b\] of this rank, got list"),
    (lambda: PartialFC(100, 32, "arcface"), TypeError,
     r"loss: expected the settings of a loss, such as partialfc.config.ArcFace\(\), got 'arcface'"),
    (lambda: PartialFC(100, 32, ArcFace), TypeError, "loss: expected the settings of a loss"),
    (lambda: PartialFC(100, 32, ArcFace(), optim=AdamW(), config=HeadConfig(optim=CenterSGD())), ValueError, "expected one of them, got both"),
    (accumulated, RuntimeError,
     r"forward\(\) of step 1: call update\(\) or discard\(\) of step 0 first; with accumulated gradients of the "
     r"backbone, update the head after each backward\(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES)
def test_a_common_mistake_is_one_line(mistake, error, message):
    with pytest.raises(error, match=message) as raised:
        mistake()
    assert "\n" not in str(raised.value)


def uneven() -> str:
    try:
        new_head().gather_labels(torch.zeros(4 + dist.get_rank(), dtype=torch.int64))
    except ValueError as error:
        return str(error)
    return "gathered"


def test_an_uneven_last_batch_is_refused_on_all_ranks(ranks):
    expected = "labels: expected as many on every rank, got [4, 5, 6]; leave out the last batch (drop_last=True), or fill it up with images labeled -1"
    assert ranks.run(3, uneven) == [expected] * 3


def test_a_head_says_what_it_is():
    assert repr(new_head()).startswith(
        f"PartialFC(num_classes={CLASSES}, embedding_size={WIDTH}, loss=CosFace("
    )
    file = io.StringIO()
    print(nn.ModuleDict({"head": new_head()}), file=file)
    assert "classes 0 to 31 of rank 0" in file.getvalue()
