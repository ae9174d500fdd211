"""The class centres that a rank owns, and their optimizer rows, as one step after the other reads and updates them.

Legend: n classes of this rank, S of them at work in a step, c of them in a chunk, D embedding width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partialfc.config import AnyOptimizer, HeadConfig
from partialfc.head.buffers import Buffers
from partialfc.head.rows import memory, rounding
from partialfc.head.rows.catch_up import CatchUp
from partialfc.head.rows.optimizers import RowSgd, RowStep, row_optimizer
from partialfc.head.sampling import Work
from partialfc.runtime import randomness

INITIAL_STD = 0.01  # of a centre's components
_BLOCK = 4096  # classes drawn together; part of the definition of the initial centres
CENTERS = "centers"  # the name of their tensor, beside those of their moments


def draw_initial(centers: Tensor, seed: int, owned: range) -> None:
    """Fill `centers` [n, D] of the classes `owned`, in blocks keyed by (seed, block): the same for any sharding."""
    width = centers.shape[1]
    for block in range(owned.start // _BLOCK, -(-owned.stop // _BLOCK) if owned else 0):
        generator = np.random.Generator(np.random.Philox(key=randomness.key(seed, "centers", block)))
        drawn = generator.standard_normal((_BLOCK, width), np.float32) * np.float32(INITIAL_STD)
        begin, end = max(owned.start, block * _BLOCK), min(owned.stop, (block + 1) * _BLOCK)
        part = torch.from_numpy(drawn[begin - block * _BLOCK : end - block * _BLOCK])
        centers[begin - owned.start : end - owned.start] = part


def types_of(config: HeadConfig, moments: tuple[str, ...], computed: torch.dtype) -> dict[str, torch.dtype]:
    """How the centres and their moments are stored; `computed`: what float32 stands for."""
    kept = torch.bfloat16 if config.moments == "bfloat16" else computed
    stored = torch.bfloat16 if config.centers == "bfloat16" else computed
    return {CENTERS: stored, **dict.fromkeys(moments, kept)}


@dataclass
class _Step:
    """The rows that a step works on."""

    tensors: dict[str, Tensor]
    rows: Tensor | None  # [S] which of the tensors' rows; None: all
    work: Work  # on the device
    factors: Tensor | None  # [S, 2, 2] of weight and momentum, by the steps that a row has missed


class Centers:
    """Rows of this rank: centres and moments, [n, D] each, in `config.memory`.

    `begin(work)`, any number of `read`s, an `update` of each chunk, `end()`: one step. Rows that are not at work
    stand still, or, with `unsampled: decay`, end up where a dense optimizer would have put them.
    """

    def __init__(
        self,
        owned: range,
        width: int,
        config: HeadConfig,
        optim: AnyOptimizer,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.owned, self.width, self.device, self.dtype = owned, width, device, dtype
        self._optimizer = row_optimizer(optim, moments=config.moments != "none")
        types = types_of(config, self._optimizer.moments, dtype)
        self._memory = _memory(config, types, (len(owned), width), device)
        draw_initial(self._memory.tensors[CENTERS], seed, owned)
        self.noisy = torch.bfloat16 in types.values()  # whether rows are rounded as they are written
        self._columns = {
            name: rounding.column_noise(name, width).to(device)
            for name, kind in types.items()
            if kind == torch.bfloat16
        }
        counted = len(owned) if self._optimizer.counts else 0
        self._counts = torch.zeros(counted, dtype=torch.int32, device=device)  # steps of each row
        decays = config.unsampled == "decay" and config.sample_rate < 1
        self._catch_up = CatchUp(len(owned), device) if decays else None
        self._buffers = Buffers(device)
        self._step: _Step | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Centres and moments, [n, D] each, wherever they live, as the latest step left them."""
        self._memory.settle()
        return self._memory.tensors

    def state(self, length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All that the next step depends on, after `length` steps, sharing memory: what has a row for each class of
        this rank, and what is the same on every rank.
        """
        shards, shared = dict(self.tensors), {}
        if self._optimizer.counts:
            shards["counts"] = self._counts
        if self._catch_up is not None:
            shards["taken"] = torch.from_numpy(self._catch_up.taken)
            shared["history"] = self._catch_up.history.steps(length)
        return shards, shared

    def loaded(self, length: int) -> None:
        """After what `state(length)` gave was filled."""
        if self._catch_up is not None:
            self._catch_up.history.loaded(length)

    def fetch(self, work: Work) -> None:
        """The rows of `work` will be wanted in the next step but one at the latest; work on the host."""
        self._memory.fetch(work)

    def begin(self, work: Work) -> Work:
        """Start a step on `work`; returns it on the device."""
        on_device = work.to(self.device)
        tensors, rows = self._memory.at_work(on_device)
        factors = None
        if self._catch_up is not None:
            assert work.host_rows is not None
            factors = self._catch_up.factors(work.host_rows).to(self.dtype)
        self._step = _Step(tensors, rows, on_device, factors)
        return self._step.work

    def read(self, chunk: slice) -> Tensor:
        """Centres [c, D] of a chunk of the classes at work, to be read only, until the next call."""
        weight = self._load(CENTERS, chunk)
        if self._current.factors is None:
            return weight
        return self._caught_up(weight, self._moments(chunk), chunk)[0]

    def pick(self, columns: Tensor) -> Tensor:
        """Centres [N, D] of some of the classes at work, a copy."""
        step = self._current
        index = columns if step.rows is None else step.rows.index_select(0, columns)
        weight = step.tensors[CENTERS].index_select(0, index).to(self.dtype)
        if step.factors is None:
            return weight
        factors = step.factors.index_select(0, columns)
        weight = weight * factors[:, 0, 0, None]
        for momentum in (step.tensors[name] for name in self._optimizer.moments):
            weight.addcmul_(momentum.index_select(0, index).to(self.dtype), factors[:, 0, 1, None])
        return weight

    def update(self, chunk: slice, d_unit: Tensor, inverse: Tensor, rate: Tensor, finite: Tensor) -> None:
        """One optimizer step of a chunk of the classes at work; none where `finite` is false.

        d_unit [c, D]: the loss's gradient by the centres at length 1, finite, and overwritten; inverse [c, 1]:
        1 / their lengths; rate: a scalar, 0 where `finite` is false.
        """
        weight, moments = self._load(CENTERS, chunk), self._moments(chunk)
        if self._current.factors is not None:
            weight, moments = self._caught_up(weight, moments, chunk)
        # Scaling to length 1 lets through only what is at right angles to the row.
        radial = torch.linalg.vecdot(d_unit, weight).unsqueeze(1).mul_(inverse * inverse).neg_()
        gradient = d_unit.addcmul_(weight, radial).mul_(inverse)
        count = self._count(chunk, finite) if self._optimizer.counts else None
        self._optimizer.step(RowStep(weight, gradient, moments, rate, finite, count))
        self._store(CENTERS, chunk, weight)
        for name, moment in zip(self._optimizer.moments, moments, strict=True):
            self._store(name, chunk, moment)

    def end(self, work: Work, rate: Tensor, finite: Tensor) -> None:
        """The step is done; work as `begin` got it."""
        if self._catch_up is not None:
            assert work.host_rows is not None and isinstance(self._optimizer, RowSgd)
            self._catch_up.append(work.host_rows, self._optimizer.transition(rate, finite))
        self._step = None
        self._memory.release(work)

    @property
    def _current(self) -> _Step:
        assert self._step is not None, "begin() comes first"
        return self._step

    def _load(self, name: str, chunk: slice) -> Tensor:
        """A chunk of a tensor in the type that is computed in: itself where it can be."""
        stored, rows = self._current.tensors[name], self._current.rows
        if rows is None:
            part = stored[chunk]
        else:
            index = rows[chunk]
            part = self._take(f"stored {name}", (len(index), self.width), stored.dtype)
            torch.index_select(stored, 0, index, out=part)
        if part.dtype == self.dtype:
            return part
        return self._take(name, (len(part), self.width), self.dtype).copy_(part)

    def _moments(self, chunk: slice) -> list[Tensor]:
        return [self._load(name, chunk) for name in self._optimizer.moments]

    def _caught_up(self, weight: Tensor, moments: list[Tensor], chunk: slice) -> tuple[Tensor, list[Tensor]]:
        """Weight, and momentum if there is one, after the steps that the rows have missed; copies."""
        factors = self._current.factors
        assert factors is not None
        shape, part = tuple(weight.shape), factors[chunk].unsqueeze(-1)  # [c, 2, 2, 1]
        later = torch.mul(weight, part[:, 0, 0], out=self._take("later weight", shape, self.dtype))
        if not moments:
            return later, []
        (momentum,) = moments
        later.addcmul_(momentum, part[:, 0, 1])
        later_momentum = torch.mul(
            momentum, part[:, 1, 1], out=self._take("later momentum", shape, self.dtype)
        )
        return later, [later_momentum.addcmul_(weight, part[:, 1, 0])]

    def _count(self, chunk: slice, finite: Tensor) -> Tensor:
        """[c, 1] steps that the rows have taken, with this one."""
        rows = self._current.work.rows
        index = slice(chunk.start, chunk.stop) if rows is None else rows[chunk]
        count = self._counts[index] + finite.to(torch.int32)
        self._counts[index] = count
        return count.unsqueeze(1)

    def _store(self, name: str, chunk: slice, values: Tensor) -> None:
        step = self._current
        stored = step.tensors[name]
        if stored.dtype == torch.bfloat16:
            assert step.work.noise is not None
            values = values.to(torch.float32)
            rounding.round_(values, step.work.noise[chunk], self._columns[name], self._buffers)
            shape = tuple(values.shape)
            values = self._take(f"stored {name}", shape, stored.dtype).copy_(values)  # exact by now
        if step.rows is not None:
            stored.index_copy_(0, step.rows[chunk], values)
        elif stored.dtype != self.dtype or step.factors is not None:  # else it was worked on in place
            stored[chunk].copy_(values)

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._buffers.take(name, shape, dtype)


def _memory(
    config: HeadConfig, types: dict[str, torch.dtype], shape: tuple[int, int], device: torch.device
) -> memory.InPlace | memory.Staged:
    if config.memory == "device":
        return memory.InPlace(types, shape, device)
    if config.memory == "host":
        return memory.in_host_memory(types, shape, device)
    assert config.folder is not None
    return memory.in_files(types, shape, device, Path(config.folder))
