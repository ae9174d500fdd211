"""Nearest classes of each class, by the cosine of their centers.

Shapes:
    W: ranks
    C: classes
    n: classes of this rank
    K: neighbors per class
    Q: classes in a block
    D: components of a center
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import HeadConfig
from partialfc.head.buffers import pinned
from partialfc.head.precision import MatmulPrecision
from partialfc.runtime import comm
from partialfc.runtime.comm import OptionalGroup

REFRESH_INTERVAL = 8  # steps between two passes over the centers, each of which updates one block
_COMMIT_DELAY = 4  # steps before new lists are used; the copy to the host is complete by then
_MAX_COSINES_PER_BLOCK = 1 << 24  # at a time


def refresh_block_size(num_classes: int, config: HeadConfig) -> int:
    """Return Q, the number of classes updated at once, such that `hard_refresh_steps` update all classes."""
    return -(-num_classes // max(1, config.hard_refresh_steps // REFRESH_INTERVAL))


def rows_per_chunk(block: int) -> int:
    """Return the number of local rows that are compared with a block at once."""
    return max(1, _MAX_COSINES_PER_BLOCK // block)


class Neighbors:
    """Neighbor lists `[C, K]` on the host, equal on all ranks, nearest class first; -1 in lists that do not exist yet.

    A list contains the neighbors at the step that updated it. A step that is prepared less than four steps ahead uses
    lists that depend on the saved state only.
    """

    def __init__(
        self,
        num_classes: int,
        owned: range,
        config: HeadConfig,
        precision: MatmulPrecision,
        group: OptionalGroup,
        device: torch.device,
    ) -> None:
        self._num_classes, self._owned, self._hard_fraction = num_classes, owned, config.hard_fraction
        self._precision, self._group = precision, group
        self._block = refresh_block_size(num_classes, config)
        self._num_neighbors = min(config.hard_neighbors, num_classes - 1)
        self._lists = np.full((num_classes, self._num_neighbors), -1, np.int32)
        shape = self._block, self._num_neighbors
        self._pending = (
            torch.empty(shape, dtype=torch.int32) if device.type == "cpu" else pinned(shape, torch.int32)
        )
        self._pending.fill_(-1)
        self._pending_step = np.full((), -1, np.int64)  # step that computed `_pending`; -1: none
        self._copy_done: torch.cuda.Event | None = None

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save, which share memory with the lists and are equal on all ranks."""
        self._wait()
        return {
            "neighbors": torch.from_numpy(self._lists),
            "neighbors_made": self._pending,
            "neighbors_made_in": torch.from_numpy(self._pending_step),
        }

    def commit_pending(self, step: int) -> None:
        """Copy pending lists into the lists if `step`, which is about to be prepared, may use them."""
        made_in = int(self._pending_step)
        if 0 <= made_in <= step - _COMMIT_DELAY:
            self._wait()
            block = self._block_of_step(made_in)
            self._lists[block.start : block.stop] = self._pending[: len(block)].numpy()
            self._pending_step[...] = -1

    def select_hard_negatives(
        self, targets: NDArray[np.int64], step: int, count: int
    ) -> tuple[NDArray[np.int64], int]:
        """Return the hard negatives of a step, and the number of classes that remain to be sampled uniformly.

        Each class of the batch that has a list contributes equally many neighbors. If the fraction is no multiple of
        their number, some classes contribute one more, in rotation. A neighbor of two classes counts twice.

        Args:
            targets: Classes of the global batch, ascending, without repeats.
            step: Index of the step.
            count: Number of sampled classes of the step.

        Returns:
            Classes in ascending order without repeats, and the remaining number.
        """
        lists = self._lists[targets]
        lists = lists[(lists >= 0).all(axis=1)]
        allowed = min(int(self._hard_fraction * count), lists.size)
        if not allowed:
            return np.empty(0, np.int64), count
        each, more = divmod(allowed, len(lists))
        turn = (np.arange(len(lists)) - step * more) % len(lists)
        brings = each + (turn < more)
        found = lists[np.arange(self._num_neighbors) < brings[:, None]]
        return np.unique(found).astype(np.int64), count - allowed

    def refresh(self, step: int, centers: Tensor) -> None:
        """Compute the lists of the next block of classes after every eighth step, without a host sync.

        Collectives: two all-gathers of `[Q, K]` and one all-reduce of `[Q, D]`, every eighth step.

        Args:
            step: Index of the step that ends.
            centers: Centers of this rank, `[n, D]`.
        """
        if step % REFRESH_INTERVAL:
            return
        queries = self._block_of_step(step)
        lists = self._find_nearest(queries, centers)
        self._pending[: len(queries)].copy_(lists, non_blocking=True)
        self._pending_step[...] = step
        if lists.is_cuda:
            self._copy_done = torch.cuda.current_stream(lists.device).record_event()

    def _wait(self) -> None:
        if self._copy_done is not None:
            self._copy_done.synchronize()
            self._copy_done = None

    def _block_of_step(self, step: int) -> range:
        blocks = -(-self._num_classes // self._block)
        start = step // REFRESH_INTERVAL % blocks * self._block
        return range(start, min(start + self._block, self._num_classes))

    def _find_nearest(self, queries: range, centers: Tensor) -> Tensor:
        """Return the nearest classes of the queries, int32 `[Q, K]`, equal on all ranks."""
        directions = self._gather_directions(queries, centers)
        cosines = directions.new_full((len(queries), self._num_neighbors), -torch.inf)
        classes = torch.full_like(cosines, -1, dtype=torch.int64)
        step = rows_per_chunk(len(queries))
        for start in range(0, len(self._owned), step):
            rows = centers[start : start + step]
            found = self._compute_cosines(directions, rows)
            _mask_self(
                found, queries, range(self._owned.start + start, self._owned.start + start + len(rows))
            )
            best, places = found.topk(min(self._num_neighbors, len(rows)))
            cosines, classes = _top_k(
                torch.cat([cosines, best], dim=1),
                torch.cat([classes, places + (self._owned.start + start)], dim=1),
                self._num_neighbors,
            )
        cosines, classes = (self._gather_candidates(part, len(queries)) for part in (cosines, classes))
        return _top_k(cosines, classes, self._num_neighbors)[1].to(torch.int32)

    def _gather_directions(self, queries: range, centers: Tensor) -> Tensor:
        """Return the normalized centers of the queries from all ranks, `[Q, D]`."""
        dtype = torch.float32 if centers.dtype == torch.bfloat16 else centers.dtype
        rows = torch.zeros(len(queries), centers.shape[1], dtype=dtype, device=centers.device)
        mine = _intersect(queries, self._owned)
        if mine:
            rows[_relative_slice(mine, queries)] = normalize(
                centers[_relative_slice(mine, self._owned)].to(dtype)
            )
        return comm.all_reduce_sum_(rows, self._group)

    def _compute_cosines(self, directions: Tensor, rows: Tensor) -> Tensor:
        factor = self._precision.logits_dtype
        out = directions.new_empty(len(directions), len(rows))
        unit = normalize(rows.to(directions.dtype)).to(factor)
        return self._precision.mm(out, directions.to(factor), unit.T)

    def _gather_candidates(self, part: Tensor, queries: int) -> Tensor:
        """Gather `[Q, K]` of each rank into `[Q, W K]`."""
        gathered = comm.all_gather_rows(part, self._group)
        return gathered.view(-1, queries, self._num_neighbors).transpose(0, 1).reshape(queries, -1)


def _top_k(cosines: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest cosines of each row, and their classes."""
    best, places = cosines.topk(count)
    return best, classes.gather(1, places)


def _mask_self(cosines: Tensor, queries: range, classes: range) -> None:
    """Set the cosine of each class with itself to -inf."""
    if both := _intersect(queries, classes):
        cosines[_relative_slice(both, queries), _relative_slice(both, classes)].fill_diagonal_(-torch.inf)


def _intersect(left: range, right: range) -> range:
    return range(max(left.start, right.start), min(left.stop, right.stop))


def _relative_slice(part: range, whole: range) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)
