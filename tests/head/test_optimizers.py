"""A row's steps are torch.optim's: all rows at once, some rows, skipped steps, lower precision of what is kept."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.reference import dense_loss, drawn_classes
from torch import Tensor

from partialfc.config import SGD, AdamW, AnyOptimizer, CosFace, HeadConfig
from partialfc.head import PartialFC
from partialfc.head.storage.initial import init_centers

CLASSES, WIDTH, BATCH, SEED = 60, 8, 12, 5
MARGIN = CosFace(scale=8.0, margin=0.2)
SKIPPED = 7  # a step that is not finite
OPTIMIZERS = {
    "sgd": SGD(momentum=0.9, weight_decay=5e-3),
    "nesterov": SGD(momentum=0.9, nesterov=True, weight_decay=5e-3),
    "plain": SGD(momentum=0.0, weight_decay=5e-3),
    "adamw": AdamW(lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
}


def rate_of(step: int, optim: AnyOptimizer) -> float:
    peak = 0.3 if isinstance(optim, SGD) else 0.02
    return peak * (1 + step % 5) / 5 / (1 + step / 200)


def inputs(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    labels[step % BATCH] = -1
    return torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64), labels


def torchs(optim: AnyOptimizer, weight: torch.nn.Parameter) -> torch.optim.Optimizer:
    if isinstance(optim, AdamW):
        return torch.optim.AdamW(
            [weight], optim.lr, optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
    return torch.optim.SGD(
        [weight], optim.lr, optim.momentum, nesterov=optim.nesterov, weight_decay=optim.weight_decay
    )


def dense(optim: AnyOptimizer, sample_rate: float, steps: int, device: str) -> Tensor:
    """The centers [C, D] after steps of torch's optimizer on the dense gradient, zero for unsampled classes."""
    start = torch.empty(CLASSES, WIDTH, dtype=torch.float64)
    init_centers(start, SEED, range(CLASSES), torch.device(device))
    weight = torch.nn.Parameter(start)
    optimizer = torchs(optim, weight)
    for step in range(steps):
        embeddings, labels = inputs(step)
        active = torch.zeros(CLASSES, dtype=torch.bool)
        drawn = drawn_classes(CLASSES, sample_rate, SEED, step)
        active[torch.from_numpy(drawn)] = True
        active[labels[labels >= 0]] = True
        optimizer.zero_grad()
        dense_loss(embeddings, weight, labels, MARGIN, active=active).backward()
        optimizer.param_groups[0]["lr"] = rate_of(step, optim)
        if step != SKIPPED:
            optimizer.step()
    return weight.detach()


def new_head(optim: AnyOptimizer, dtype: torch.dtype, device: str, options: dict[str, Any]) -> PartialFC:
    return PartialFC(
        CLASSES, WIDTH, MARGIN, config=HeadConfig(**options), optim=optim, seed=SEED, device=device, dtype=dtype
    )  # fmt: skip


def ours(
    optim: AnyOptimizer, steps: int, dtype: torch.dtype, device: str, options: dict[str, Any], save: int = -1
) -> dict[str, Tensor]:
    """This rank's rows after as many steps; before step `save`, its state moves to a new head."""
    head = new_head(optim, dtype, device, options)
    for number in range(steps):
        if number == save:
            head = moved(head, new_head(optim, dtype, device, options))
        embeddings, labels = inputs(number)
        local = embeddings.chunk(dist.get_world_size())[dist.get_rank()]
        local = local.to(device, dtype).requires_grad_()
        step = head.prepare(labels, number)
        head(local, step).backward()
        head.update(step, rate_of(number, optim), torch.tensor(number != SKIPPED, device=device))
    rows = {name: rows.cpu() for name, rows in head.centers.tensors.items()}
    if (catch_up := head.centers._catch_up) is not None:  # rows are stored as they were last active
        factors = catch_up.factors(np.arange(len(rows["centers"]))).to(dtype).cpu()
        moved_on = factors[:, 0, :1] * rows["centers"]
        rows["centers"] = moved_on + factors[:, 0, 1:] * rows["momentum"] if "momentum" in rows else moved_on
    return rows


def moved(old: PartialFC, new: PartialFC) -> PartialFC:
    new.load_state_dict(old.state_dict())
    return new


def difference(results: list[dict[str, Tensor]], expected: Tensor) -> float:
    """The largest, relative to the largest component of its center."""
    found = torch.cat([rows["centers"] for rows in results]).double()
    return ((found - expected).abs() / expected.abs().amax(dim=1, keepdim=True)).max().item()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_all_classes_active_it_is_torchs(ranks, device, name, world_size):
    optim = OPTIMIZERS[name]
    results = ranks.run(world_size, ours, optim, 20, torch.float64, device, {})
    assert difference(results, dense(optim, 1.0, 20, device)) < 1e-9


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", ["sgd", "nesterov", "plain"])
def test_decay_is_the_dense_optimizer_with_a_tenth_of_the_classes(ranks, device, name, world_size):
    optim, options = OPTIMIZERS[name], {"sample_rate": 0.1, "unsampled": "decay"}
    expected = dense(optim, 0.1, 60, device)
    results = ranks.run(world_size, ours, optim, 60, torch.float64, device, options, 33)
    assert difference(results, expected) < 1e-9
    held = ranks.run(world_size, ours, optim, 60, torch.float64, device, {"sample_rate": 0.1})
    assert difference(held, expected) > 0.01


@pytest.mark.parametrize(("steps", "bound", "world_size"), [(200, 1e-4, 2), (2000, 1e-3, 1)])
def test_decay_stays_the_dense_optimizer_over_a_long_run_in_float32(ranks, device, steps, bound, world_size):
    optim, options = (
        OPTIMIZERS["sgd"],
        {"sample_rate": 0.1, "unsampled": "decay", "matmul_precision": "float32"},
    )
    results = ranks.run(world_size, ours, optim, steps, torch.float32, device, options, steps // 2)
    assert difference(results, dense(optim, 0.1, steps, device)) < bound


def test_decay_without_momentum_kept(ranks, device):
    options = {"sample_rate": 0.1, "unsampled": "decay", "optim_state_dtype": "none"}
    results = ranks.run(2, ours, OPTIMIZERS["sgd"], 40, torch.float64, device, options, 20)
    assert difference(results, dense(OPTIMIZERS["plain"], 0.1, 40, device)) < 1e-9
    assert list(results[0]) == ["centers"]


def test_adamw_of_sampled_rows_counts_each_rows_own_steps(ranks, device):
    """Against torch.optim.AdamW on each row alone, stepped when the row is active."""
    optim = OPTIMIZERS["adamw"]
    results = ranks.run(2, ours, optim, 40, torch.float64, device, {"sample_rate": 0.1}, 20)
    assert difference(results, row_by_row(optim, 0.1, 40, device)) < 1e-9


def row_by_row(optim: AdamW, sample_rate: float, steps: int, device: str) -> Tensor:
    start = torch.empty(CLASSES, WIDTH, dtype=torch.float64)
    init_centers(start, SEED, range(CLASSES), torch.device(device))
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torchs(optim, row) for row in rows]
    for step in range(steps):
        embeddings, labels = inputs(step)
        drawn = drawn_classes(CLASSES, sample_rate, SEED, step)
        active = torch.zeros(CLASSES, dtype=torch.bool)
        active[torch.from_numpy(drawn)] = True
        active[labels[labels >= 0]] = True
        dense_loss(embeddings, torch.stack(list(rows)), labels, MARGIN, active=active).backward()
        for optimizer, works in zip(optimizers, active.tolist(), strict=True):
            optimizer.param_groups[0]["lr"] = rate_of(step, optim)
            if works and step != SKIPPED:
                optimizer.step()
            optimizer.zero_grad()
    return torch.stack(rows).detach()


LOWER = {"sample_rate": 0.3, "centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rows_in_bfloat16_follow_those_in_float32(ranks, device, name):
    lower = ranks.run(2, ours, OPTIMIZERS[name], 30, torch.float32, device, LOWER, 15)
    full = ranks.run(2, ours, OPTIMIZERS[name], 30, torch.float32, device, {"sample_rate": 0.3})
    assert all(rows.dtype == torch.bfloat16 for rows in lower[0].values())
    error = difference(lower, torch.cat([rows["centers"] for rows in full]).double())
    assert 1e-4 < error < 0.1  # a step of bfloat16 is 0.8 %


def test_rows_in_bfloat16_are_the_same_at_any_world_size(ranks, device):
    """But for where rounding of the losses' sums moves a number across a draw."""
    options = LOWER | {"sample_rate": 0.3}
    one, three = (
        torch.cat(
            [
                rows["centers"]
                for rows in ranks.run(size, ours, OPTIMIZERS["sgd"], 3, torch.float32, device, options)
            ]
        )
        for size in (1, 3)
    )
    assert (one == three).double().mean() > 0.99


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_skipped_step_leaves_rows_in_bfloat16_as_they_are(ranks, device, name):
    arguments = OPTIMIZERS[name], torch.float32, device, LOWER
    before, after = (
        ranks.run(1, ours, arguments[0], steps, *arguments[1:])[0] for steps in (SKIPPED, SKIPPED + 1)
    )
    assert all(torch.equal(before[key], after[key]) for key in before)


def skipped_first_step(device: str) -> bool:
    head = new_head(OPTIMIZERS["adamw"], torch.float32, device, {"sample_rate": 0.5})
    before = [rows.clone() for rows in head.centers.tensors.values()]
    embeddings, labels = inputs(0)
    step = head.prepare(labels, 0)
    head(embeddings.to(device, torch.float32).requires_grad_(), step).backward()
    head.update(step, 0.1, torch.tensor(False, device=device))
    return all(map(torch.equal, before, head.centers.tensors.values()))


def test_adamw_skips_a_rows_first_step(ranks, device):
    assert ranks.run(1, skipped_first_step, device) == [True]
