"""The neighbours of classes: for each, those whose centres have the largest cosines with its own.

Legend: W ranks, C classes, n of them on this rank, K neighbours of each, Q classes of a block, D embedding width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import HeadConfig
from partialfc.head.products import Products
from partialfc.head.scratch import pinned
from partialfc.runtime import comm
from partialfc.runtime.comm import Group

EVERY = 8  # steps: one pass over this rank's centres then makes the lists of a block
_LATER = 4  # steps after which what a step has made is used: by then it is on the host, and nobody waits
_COSINES = 1 << 24  # at a time


def block_of(num_classes: int, config: HeadConfig) -> int:
    """Q: how many classes get their list at once, so that all have it anew in `hard_refresh` steps."""
    return -(-num_classes // max(1, config.hard_refresh // EVERY))


def rows_at_once(block: int) -> int:
    """How many of a rank's rows are compared with a block at a time."""
    return max(1, _COSINES // block)


class Neighbors:
    """Lists [C, K] on the host, the same on every rank, the nearest class first, as the centres were when the class had
    its turn; -1: none yet.

    What a step sees is a function of what was stored before, as long as it is prepared less than four steps ahead.
    """

    def __init__(
        self,
        num_classes: int,
        owned: range,
        config: HeadConfig,
        products: Products,
        group: Group,
        device: torch.device,
    ) -> None:
        self._num_classes, self._owned, self._share = num_classes, owned, config.hard_share
        self._products, self._group = products, group
        self._block = block_of(num_classes, config)
        self._width = min(config.hard_neighbors, num_classes - 1)
        self._lists = np.full((num_classes, self._width), -1, np.int32)
        shape = self._block, self._width
        self._made = (
            torch.empty(shape, dtype=torch.int32) if device.type == "cpu" else pinned(shape, torch.int32)
        )
        self._made.fill_(-1)
        self._made_in = np.full((), -1, np.int64)  # the step that made them; -1: they are among the lists
        self._arrived: torch.cuda.Event | None = None

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on, sharing memory; the same on every rank."""
        self._wait()
        return {
            "neighbors": torch.from_numpy(self._lists),
            "neighbors_made": self._made,
            "neighbors_made_in": torch.from_numpy(self._made_in),
        }

    def take_in(self, number: int) -> None:
        """Before step `number` is prepared: what was made for it and those after it counts from here on."""
        made_in = int(self._made_in)
        if 0 <= made_in <= number - _LATER:
            self._wait()
            block = self._block_in(made_in)
            self._lists[block.start : block.stop] = self._made[: len(block)].numpy()
            self._made_in[...] = -1

    def near(self, targets: NDArray[np.int64], number: int, count: int) -> tuple[NDArray[np.int64], int]:
        """The classes near a batch's that step `number` works on, ascending, without repeats; and how many of the `count`
        classes that it draws are left for chance.

        targets: the classes of the global batch, ascending, without repeats. Each that has a list brings as many of its
        nearest as the share allows, where it is no multiple of them one more for some, who take turns. What two bring
        counts twice.
        """
        lists = self._lists[targets]
        lists = lists[(lists >= 0).all(axis=1)]
        allowed = min(int(self._share * count), lists.size)
        if not allowed:
            return np.empty(0, np.int64), count
        each, more = divmod(allowed, len(lists))
        turn = (np.arange(len(lists)) - number * more) % len(lists)
        brings = each + (turn < more)
        found = lists[np.arange(self._width) < brings[:, None]]
        return np.unique(found).astype(np.int64), count - allowed

    def refresh(self, number: int, centers: Tensor) -> None:
        """At the end of a step, the lists of one block: classes that take turns. centers: this rank's [n, D].

        In every eighth step: two collectives of [Q, K] numbers from each rank, and one of [Q, D]. Nothing waits for the
        device.
        """
        if number % EVERY:
            return
        queries = self._block_in(number)
        lists = self._nearest(queries, centers)
        self._made[: len(queries)].copy_(lists, non_blocking=True)
        self._made_in[...] = number
        if lists.is_cuda:
            self._arrived = torch.cuda.current_stream(lists.device).record_event()

    def _wait(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None

    def _block_in(self, number: int) -> range:
        blocks = -(-self._num_classes // self._block)
        start = number // EVERY % blocks * self._block
        return range(start, min(start + self._block, self._num_classes))

    def _nearest(self, queries: range, centers: Tensor) -> Tensor:
        """[Q, K] int32 of classes, the same on every rank."""
        directions = self._directions_of(queries, centers)
        cosines = directions.new_full((len(queries), self._width), -torch.inf)
        classes = torch.full_like(cosines, -1, dtype=torch.int64)
        step = rows_at_once(len(queries))
        for start in range(0, len(self._owned), step):
            rows = centers[start : start + step]
            found = self._cosines(directions, rows)
            _leave_out(
                found, queries, range(self._owned.start + start, self._owned.start + start + len(rows))
            )
            best, places = found.topk(min(self._width, len(rows)))
            cosines, classes = _best(
                torch.cat([cosines, best], dim=1),
                torch.cat([classes, places + (self._owned.start + start)], dim=1),
                self._width,
            )
        cosines, classes = (self._of_all(part, len(queries)) for part in (cosines, classes))
        return _best(cosines, classes, self._width)[1].to(torch.int32)

    def _directions_of(self, queries: range, centers: Tensor) -> Tensor:
        """The centres [Q, D] of classes, wherever they live, at length 1."""
        dtype = torch.float32 if centers.dtype == torch.bfloat16 else centers.dtype
        rows = torch.zeros(len(queries), centers.shape[1], dtype=dtype, device=centers.device)
        mine = _both(queries, self._owned)
        if mine:
            rows[_within(mine, queries)] = normalize(centers[_within(mine, self._owned)].to(dtype))
        return comm.sum_(rows, self._group)

    def _cosines(self, directions: Tensor, rows: Tensor) -> Tensor:
        factor = self._products.of_logits
        out = directions.new_empty(len(directions), len(rows))
        unit = normalize(rows.to(directions.dtype)).to(factor)
        return self._products.into(out, directions.to(factor), unit.T)

    def _of_all(self, part: Tensor, queries: int) -> Tensor:
        """[Q, W K] of every rank's [Q, K]."""
        everyones = comm.gather_rows(part, self._group)
        return everyones.view(-1, queries, self._width).transpose(0, 1).reshape(queries, -1)


def _best(cosines: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest cosines of each row, and their classes."""
    best, places = cosines.topk(count)
    return best, classes.gather(1, places)


def _leave_out(cosines: Tensor, queries: range, classes: range) -> None:
    """A class is no neighbour of itself."""
    if both := _both(queries, classes):
        cosines[_within(both, queries), _within(both, classes)].fill_diagonal_(-torch.inf)


def _both(left: range, right: range) -> range:
    return range(max(left.start, right.start), min(left.stop, right.stop))


def _within(part: range, whole: range) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)
