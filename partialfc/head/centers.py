"""The class centres that a rank owns, and their optimizer rows, as one step after the other works on some of them.

Legend: n classes of this rank, S of them active in a step, K centres of each in one row, D embedding width.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partialfc.config import AnyMargin, HeadConfig, RowRule, SgdRule
from partialfc.head.active import ActiveClasses
from partialfc.head.active_rows import CENTERS, ActiveRows, Storage
from partialfc.head.initial import draw_initial
from partialfc.head.kernels import Operations
from partialfc.head.products import Products
from partialfc.head.rows import memory, rounding
from partialfc.head.rows.catch_up import CatchUp
from partialfc.head.rows.frozen import FrozenRows
from partialfc.head.rows.optimizers import row_optimizer
from partialfc.head.scratch import ScratchMemory

_SETTLED = 1 << 14  # rows that are brought up to date at once


def rule_of(config: HeadConfig, optim: RowRule | None, margin: AnyMargin) -> RowRule:
    """How the centres move. ValueError where that is said twice, or does not go with the settings."""
    if optim is not None and config.optim is not None:
        raise ValueError("optim and config.optim: found both; wanted one of them")
    rule = optim or config.optim or SgdRule()
    config.check_with(rule, margin)
    return rule


def types_of(config: HeadConfig, moments: tuple[str, ...], computed: torch.dtype) -> dict[str, torch.dtype]:
    """How the centres and their moments are stored; `computed`: what float32 stands for."""
    kept = torch.bfloat16 if config.moments == "bfloat16" else computed
    stored = torch.bfloat16 if config.centers == "bfloat16" else computed
    return {CENTERS: stored, **dict.fromkeys(moments, kept)}


def caught_up(rows: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """Return rows [S, K D] of centers, and of momentum where it is kept, after the steps they have missed.

    factors: [S, 2, 2], see CatchUp.
    """
    names = [CENTERS, *(name for name in rows if name != CENTERS)]
    factors = factors.to(rows[CENTERS].device)
    stacked = torch.stack([rows[name].to(factors.dtype) for name in names], dim=1)  # [S, k, K D]
    later = factors[:, : len(names), : len(names)] @ stacked
    return {name: later[:, place] for place, name in enumerate(names)}


class Centers:
    """Rows of this rank: centres and moments, [n, K D] each, in `config.memory`.

    A step takes its rows by `activate`, and gives them back by `release` once they are updated, or by `drop`. Rows
    that are not active stand still, or, with `unsampled: decay`, end up where a dense optimizer would have put them.
    """

    def __init__(
        self,
        owned: range,
        width: int,
        config: HeadConfig,
        optim: RowRule,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        products: Products,
        operations: Operations,
        drawn: bool = True,
    ) -> None:
        self.owned, self.width, self.device, self.dtype = owned, width, device, dtype
        self._optimizer = row_optimizer(optim, moments=config.moments != "none")
        types = types_of(config, self._optimizer.moments, dtype)
        row = width * config.subcenters
        self._memory = _memory(config, types, (len(owned), row), device, operations)
        if drawn:
            draw_initial(self._memory.tensors[CENTERS], seed, owned, device)
        rounded = [name for name, kind in types.items() if kind == torch.bfloat16]
        self.noisy = bool(rounded)  # whether rows are rounded as they are written
        self._storage = Storage(
            optimizer=self._optimizer,
            width=row,
            subcenters=config.subcenters,
            dtype=dtype,
            counts=torch.zeros(len(owned) if self._optimizer.counts else 0, dtype=torch.int32, device=device),
            rounding_columns={name: rounding.column_noise(name, row).to(device) for name in rounded},
            products=products,
            scratch=ScratchMemory(device),
        )
        self._operations = operations
        self._catch_up: CatchUp | None = None
        if config.unsampled == "decay" and config.samples:
            self._catch_up = CatchUp(len(owned), self._optimizer, device, dtype)

    @property
    def follow_teacher(self) -> bool:
        """Whether rows move to a teacher's embeddings, and not by their gradient."""
        return not self._optimizer.by_gradient

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Centres and moments, [n, K D] each, wherever they live, as the latest step left them."""
        self._memory.wait_for_writeback()
        return self._memory.tensors

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All that the next step depends on, sharing memory: what has a row for each class of this rank, and what is the
        same on every rank. Shapes do not depend on how many steps were taken.
        """
        shards, shared = dict(self.tensors), {}
        if self._optimizer.counts:
            shards["counts"] = self._storage.counts
        if self._catch_up is not None:
            shards["last_step"] = torch.from_numpy(self._catch_up.last_step)
            shared["learning_rates"] = self._catch_up.learning_rates
        return shards, shared

    def freeze(self) -> dict[str, FrozenRows]:
        """Of what `state()` gives, the rows that live in the host's memory or in files, as they are now, by name."""
        return self._memory.freeze()

    def loaded(self, steps: int) -> None:
        """Take in that what `state()` gave was filled with that of `steps` steps."""
        self._memory.forget()
        if self._catch_up is not None:
            self._catch_up.loaded(steps)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring all rows to where their skipped steps take them; nothing where rows hold still."""
        if self._catch_up is None:
            return
        self._memory.forget()
        tensors = self.tensors
        for start in range(0, len(self.owned), _SETTLED):
            rows = np.arange(start, min(start + _SETTLED, len(self.owned)))
            factors = self._catch_up.factors(rows)
            settled = caught_up({name: it[start : rows[-1] + 1] for name, it in tensors.items()}, factors)
            self._memory.before_write(rows)
            for name, values in settled.items():
                tensors[name][start : rows[-1] + 1] = values.to(tensors[name])
        self._catch_up.settled()

    def prefetch(self, classes: ActiveClasses) -> None:
        """Take the hint that the rows of `classes` will be wanted in the next step but one at the latest."""
        self._memory.prefetch(classes)

    def activate(self, classes: ActiveClasses) -> ActiveRows:
        """The rows of `classes`, whose tensors are on the device, to be worked on."""
        return self._rows(*self._memory.activate(classes), classes)

    def look_at(self, classes: ActiveClasses) -> ActiveRows:
        """The rows of `classes`, whose tensors are on the device, to be read only, whatever step is under way."""
        return self._rows(*self._memory.look_at(classes), classes)

    def release(self, classes: ActiveClasses, lr: Tensor, finite: Tensor) -> None:
        """Take back rows that a step has updated. classes: as `activate` got them."""
        if self._catch_up is not None:
            assert classes.host_rows is not None
            self._catch_up.append(classes.host_rows, lr, finite)
        self._memory.release(classes)

    def drop(self, classes: ActiveClasses) -> None:
        """Take back rows that no step has updated, or will."""
        self._memory.drop(classes)

    def _rows(self, tensors: dict[str, Tensor], index: Tensor | None, classes: ActiveClasses) -> ActiveRows:
        factors = None
        if self._catch_up is not None:
            assert classes.host_rows is not None
            factors = self._catch_up.factors(classes.host_rows).to(self.dtype)
        return self._operations.rows(tensors, index, classes, factors, self._storage)


def _memory(
    config: HeadConfig,
    types: dict[str, torch.dtype],
    shape: tuple[int, int],
    device: torch.device,
    operations: Operations,
) -> memory.InPlace | memory.Staged:
    if config.memory == "device":
        return memory.InPlace(types, shape, device)
    if config.memory == "host":
        return memory.in_host_memory(types, shape, device, operations.move_rows)
    assert config.folder is not None
    return memory.in_files(types, shape, device, Path(config.folder))
