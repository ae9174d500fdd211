"""State dict of a head, its sharding over ranks, and the base module that can be neither moved nor copied.

The state consists of tensors with a row for each class of this rank, and of tensors that are equal on all ranks.

Shapes:
    C: classes
    n: classes of this rank
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from partialfc.runtime import comm, dtensors
from partialfc.runtime.comm import OptionalGroup

CLASS_IDS = "class_ids"  # entry of the state, class of each row, int32 [C]


def class_range(num_classes: int, rank: int, world_size: int) -> range:
    """Return the classes of a rank, sharded like a DTensor with Shard(0): ceil(C / W) each, fewer on the last ranks."""
    share = -(-num_classes // world_size)
    return range(min(rank * share, num_classes), min((rank + 1) * share, num_classes))


class SeenClasses:
    """Flags of the classes that were in a batch so far, uint8 `[n]`, which are saved."""

    def __init__(self, classes: int) -> None:
        self.flags = np.zeros(classes, np.uint8)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Mark the classes of a finished batch, given as local indices."""
        self.flags[rows] = 1

    def never(self, rows: NDArray[np.int64]) -> int:
        """Return the number of classes that no batch contained, including the current batch with these classes."""
        new = np.unique(rows[self.flags[rows] == 0])
        return len(self.flags) - int(np.count_nonzero(self.flags)) - len(new)


@dataclass(frozen=True)
class Saved:
    """Tensors of the state, which share memory with the head."""

    shards: dict[str, Tensor]  # [n, ...], rows of the classes of this rank
    replicated: dict[str, Tensor]  # equal on all ranks
    num_classes: int
    group: OptionalGroup
    device: torch.device  # of the collectives

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name; row tensors are DTensors `[C, ...]` if there is a process group."""
        shards = {**self.shards, CLASS_IDS: self._class_ids()}
        sharded = {
            name: dtensors.as_dtensor(rows, self.num_classes, self.group) for name, rows in shards.items()
        }
        return sharded | self.replicated

    def gather_full_tensors(self) -> dict[str, Tensor]:
        """Return all tensors with the rows of all classes on rank 0, in host memory; {} on the other ranks."""
        shards = {**self.shards, CLASS_IDS: self._class_ids()}
        found = {
            name: comm.gather_rows_on_first_rank(rows, self.num_classes, self.group, self.device)
            for name, rows in sorted(shards.items())
        }
        whole = {name: tensor for name, tensor in found.items() if tensor is not None}
        return (
            whole | {name: tensor.detach().cpu().clone() for name, tensor in self.replicated.items()}
            if whole
            else {}
        )

    def load(self, given: Mapping[str, Any]) -> tuple[set[str], set[str], list[str]]:
        """Copy the tensors of a state dict into these tensors.

        Tensors with a row per class may be DTensors with the same sharding, or complete tensors `[C, ...]`.

        Returns:
            Missing names, unexpected names, and error messages.
        """
        names, errors = self.shards.keys() | self.replicated.keys(), []
        given = dict(given)
        if (ids := given.pop(CLASS_IDS, None)) is not None and (problem := self._of_others(ids)):
            return set(), set(), [problem]
        for name, value in given.items():
            if name not in names:
                continue
            mine = self.shards.get(name)
            part = value if mine is None else self._part(value)
            target = self.replicated[name] if mine is None else mine
            if not isinstance(part, Tensor) or part.shape != target.shape:
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                errors.append(
                    f"{name}: expected {self._expected_shape(name, target)}, got {found}; load states of another number of ranks "
                    "with torch.distributed.checkpoint"
                )
            elif part.data_ptr() != target.data_ptr():  # otherwise it was filled in place
                target.copy_(part)
        return names - given.keys(), given.keys() - names, errors

    def _class_ids(self) -> Tensor:
        """Return the class of each row, which identifies the rank that saved a copied state."""
        return torch.arange(self._owned.start, self._owned.stop, dtype=torch.int32)

    @property
    def _owned(self) -> range:
        rank, world_size = comm.rank_and_world_size(self.group)
        return class_range(self.num_classes, rank, world_size)

    def _of_others(self, ids: Any) -> str | None:
        """Return an error message if the rows belong to another rank, or None, also if the shapes differ."""
        mine, own = self._part(ids), self._class_ids()
        if not isinstance(mine, Tensor) or mine.dim() != 1 or torch.equal(mine.cpu().to(own), own):
            return None
        if not len(mine) or not len(own):
            return None  # saved by another number of ranks; the comparison of shapes reports it
        return (
            f"expected rows of the classes {self._owned.start} to {self._owned.stop - 1}, got those of "
            f"{int(mine[0])} to {int(mine[-1])}, which another rank saved; save head.full_state_dict() on rank 0, or use "
            "torch.distributed.checkpoint"
        )

    def _part(self, value: Any) -> Any:
        """Return the rows of this rank, or None if the value does not contain them."""
        local = dtensors.local_rows(value)
        if local is not None:
            return local
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != self.num_classes:
            return None
        return value[self._owned.start : self._owned.stop]

    def _expected_shape(self, name: str, target: torch.Tensor) -> list[int]:
        return [self.num_classes, *target.shape[1:]] if name in self.shards else list(target.shape)


class FixedModule(nn.Module):
    """Module with a fixed device and dtype; conversions and copies raise RuntimeError."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        # Has the device and dtype of the module; not a buffer.
        self.like = torch.empty(0, device=device, dtype=dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Raise RuntimeError in to(), cuda(), half() and similar methods if they would change device or dtype."""
        here, there = self.like, fn(self.like)
        if there.device != here.device or there.dtype != here.dtype:
            raise RuntimeError(
                f"a PartialFC cannot be converted from {here.dtype} on {here.device} to {there.dtype} on {there.device}; "
                "create another with PartialFC(..., device=..., dtype=...) and use load_state_dict()"
            )
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Raise RuntimeError in copy.deepcopy and pickle."""
        raise RuntimeError(
            "a PartialFC cannot be copied or pickled; create another and use load_state_dict(head.state_dict())"
        )


class SavedModule(FixedModule):
    """Module without parameters and buffers that defines its state dict with `_saved`.

    The tensors of the state are attributes with the same names, as PyTorch's helpers for state dicts expect.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_modules" not in self.__dict__ or not self.__dict__.get("_complete"):
                raise
            tensors = self._saved().tensors()
            if name not in tensors:
                raise
            return tensors[name]

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return the state with the rows of all classes on rank 0, in host memory, and an empty dict on other ranks.

        Training loops that save on one rank, such as Lightning, can `torch.save` it there and load it on all
        ranks, at any number of ranks. All ranks call it. Rank 0 needs memory for all rows.
        """
        return self._saved().gather_full_tensors()

    @abstractmethod
    def _saved(self) -> Saved:
        """Return the tensors to save, which share memory with the module."""

    @abstractmethod
    def _before_load(self) -> None:
        """Raise RuntimeError if a state cannot be loaded now."""

    @abstractmethod
    def _loaded(self) -> None:
        """Adapt to a state that was copied into the tensors of `_saved`."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination |= {f"{prefix}{name}": value for name, value in self._saved().tensors().items()}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._before_load()
        given = {
            name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)
        }
        missing, unexpected, errors = self._saved().load(given)
        missing_keys += [f"{prefix}{name}" for name in missing]
        unexpected_keys += [f"{prefix}{name}" for name in unexpected] if strict else []
        error_msgs += errors
        self._loaded()
