"""Rows in host memory or in files are those on the device, to the bit; and what cannot be stored is told at once."""

import errno
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from partialfc.config import AdamW, AnyOptimizer, CosFace, HeadConfig, Sgd
from partialfc.head import PartialFC
from partialfc.head.rows import memory

CLASSES, WIDTH, BATCH = 200, 8, 12
CPU = torch.device("cpu")


def inputs(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, WIDTH, generator=generator), torch.randint(
        CLASSES, (BATCH,), generator=generator
    )


def trained(options: dict[str, Any], optim: AnyOptimizer, device: str, ahead: int, drop: int | None) -> list:
    """Losses and rows after 12 steps, each prepared `ahead` steps ahead; step `drop` is prepared and not taken."""
    head = PartialFC(
        CLASSES, WIDTH, CosFace(scale=8.0), config=HeadConfig(**options), optim=optim, device=device
    )
    steps, losses = {}, []
    for number in range(12):
        for coming in range(number, min(12, number + ahead + 1)):
            if coming not in steps:
                steps[coming] = head.prepare(inputs(coming)[1], coming)
        if number == drop:
            continue
        local = inputs(number)[0].chunk(dist.get_world_size())[dist.get_rank()].to(device).requires_grad_()
        loss = head(local, steps[number])
        loss.backward()
        lr = 0.3 if isinstance(optim, Sgd) else 0.01
        head.update(steps[number], lr, torch.tensor(number != 5, device=device))
        losses.append(loss.detach().cpu())
    return [*losses, *(rows.cpu().clone() for rows in head.centers.tensors.values())]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["host", "file"])
@pytest.mark.parametrize(
    ("options", "optim"),
    [
        ({}, Sgd()),
        ({"unsampled": "decay"}, Sgd(nesterov=True)),
        ({"centers": "bfloat16", "moments": "bfloat16"}, AdamW()),
        ({"centers": "bfloat16", "moments": "none"}, Sgd()),
    ],
    ids=str,
)
def test_any_memory_gives_the_same_bits(ranks, device, tmp_path, options, optim, kind, world_size):
    options = {"sample_rate": 0.3, **options}
    expected = ranks.run(world_size, trained, options, optim, device, 0, None)
    options |= {"memory": kind, "folder": str(tmp_path)}
    found = ranks.run(world_size, trained, options, optim, device, 1, None)
    for here, there in zip(found, expected, strict=True):
        assert all(map(torch.equal, here, there))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("ahead", "drop"), [(0, None), (1, None), (3, None), (0, 4), (1, 4), (3, 4)])
def test_however_far_ahead_steps_are_prepared(ranks, device, ahead, drop):
    expected = ranks.run(2, trained, {"sample_rate": 0.3}, Sgd(), device, ahead, drop)
    found = ranks.run(2, trained, {"sample_rate": 0.3, "memory": "host"}, Sgd(), device, ahead, drop)
    for here, there in zip(found, expected, strict=True):
        assert all(map(torch.equal, here, there))


def trained_on_few_classes(options: dict[str, Any], device: str) -> list:
    """Three classes: of four ranks, the last has none."""
    head = PartialFC(
        3, WIDTH, CosFace(scale=8.0), config=HeadConfig(sample_rate=0.4, **options), device=device
    )
    losses = []
    for number in range(4):
        local = inputs(number)[0].chunk(dist.get_world_size())[dist.get_rank()].to(device).requires_grad_()
        step = head.prepare(inputs(number)[1] % 3, number)
        loss = head(local, step)
        loss.backward()
        head.update(step, 0.3)
        losses.append(loss.detach().cpu())
    return losses


@pytest.mark.parametrize("options", [{}, {"unsampled": "decay"}, {"centers": "bfloat16"}], ids=str)
def test_a_rank_without_classes(ranks, device, tmp_path, options):
    expected = ranks.run(4, trained_on_few_classes, options, device)
    for kind in ("host", "file"):
        there = options | {"memory": kind, "folder": str(tmp_path)}
        assert ranks.run(4, trained_on_few_classes, there, device) == expected


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"head.folder .*file/rows: Not a directory; wanted 320 bytes for centers"
    ):
        memory.in_files({"centers": torch.float32}, (10, 8), CPU, tmp_path / "file/rows")


def test_a_full_disk_is_told_before_anything_is_written(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        mock.patch.object(os, "posix_fallocate", side_effect=full),
        pytest.raises(
            OSError, match=r"No space left on device; wanted 320 bytes for centers, [\d,]+ bytes free"
        ),
    ):
        memory.in_files({"centers": torch.float32}, (10, 8), CPU, tmp_path)


def test_more_than_the_disk_holds_is_refused(tmp_path: Path):
    free = os.statvfs(tmp_path)
    rows = 2 * free.f_bavail * free.f_frsize // 4096
    with pytest.raises(OSError, match=r"wanted .* bytes for centers, .* bytes free"):
        memory.in_files({"centers": torch.float32}, (rows, 1024), CPU, tmp_path)
