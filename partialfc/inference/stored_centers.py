"""Class centers of a checkpoint, for purposes other than resuming its run."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from partialfc.config.provenance import parse_provenance
from partialfc.head.kernels.torch_centers import CENTERS, catch_up
from partialfc.head.optimizers import RowOptimizer, build_row_optimizer
from partialfc.head.storage.catch_up import MAX_STEPS, CatchUp
from partialfc.runtime import checkpoint
from partialfc.runtime.checkpoint import read_rows

_ROWS = 1 << 14  # rows that are updated at a time


def read_centers(path: Path, first: int, last: int) -> Tensor:
    """Return the centers of the classes [first, last) as a dense optimizer would have them, on the CPU.

    With `head.unsampled: decay` a checkpoint contains rows as of their last sampled step. The skipped steps
    are applied here.

    Raises:
        InputError: If the path is not a checkpoint, or is damaged.
    """
    manifest = checkpoint.read_manifest(path)
    centers = read_rows(path, f"head.{CENTERS}", first, last)
    if "head.last_step" not in manifest.tensors:
        return centers
    config = parse_provenance(manifest.about, f"checkpoint {path}").config
    optimizer = build_row_optimizer(config.center_optimizer, moments=config.head.optim_state_dtype != "none")
    missed = _catch_up(path, last - first, optimizer, manifest.step)
    missed.last_step[:] = read_rows(path, "head.last_step", first, last).numpy()
    rows = {CENTERS: centers} | {
        name: read_rows(path, f"head.{name}", first, last) for name in optimizer.moments
    }
    for start in range(0, len(centers), _ROWS):
        part = slice(start, min(start + _ROWS, len(centers)))
        factors = missed.factors(torch.arange(part.start, part.stop).numpy())
        settled = catch_up({name: it[part].double() for name, it in rows.items()}, factors)
        centers[part] = settled[CENTERS].to(centers.dtype)
    return centers


def _catch_up(path: Path, count: int, optimizer: RowOptimizer, steps: int) -> CatchUp:
    catch_up = CatchUp(count, optimizer, torch.device("cpu"), torch.float32)
    catch_up.learning_rates.copy_(_learning_rates(path, path.stat().st_mtime_ns))
    catch_up.after_load(steps)
    return catch_up


@lru_cache(1)
def _learning_rates(path: Path, changed: int) -> Tensor:
    return read_rows(path, "head.learning_rates", 0, MAX_STEPS)
