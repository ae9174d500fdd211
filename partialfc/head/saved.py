"""What a head saves: tensors with a row for each of this rank's classes, and tensors that all ranks have alike."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partialfc.head.fixed import FixedModule
from partialfc.head.shard import class_range
from partialfc.runtime import comm, dtensors
from partialfc.runtime.comm import Group

CLASS_IDS = "class_ids"  # of a state: the class of each row, int32 [C]


@dataclass(frozen=True)
class Saved:
    """Tensors that share memory with the head's."""

    shards: dict[str, Tensor]  # [n, ...] rows of this rank's classes
    replicated: dict[str, Tensor]
    num_classes: int
    group: Group
    device: torch.device  # that the group communicates on

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, those with a row for each class as DTensors [C, ...] where there is a process group."""
        shards = {**self.shards, CLASS_IDS: self._class_ids()}
        sharded = {name: dtensors.sharded(it, self.num_classes, self.group) for name, it in shards.items()}
        return sharded | self.replicated

    def whole(self) -> dict[str, Tensor]:
        """Return all tensors with the rows of all classes on the first rank, on its host; nothing on the others."""
        shards = {**self.shards, CLASS_IDS: self._class_ids()}
        found = {
            name: comm.rows_on_first_rank(it, self.num_classes, self.group, self.device)
            for name, it in sorted(shards.items())
        }
        whole = {name: it for name, it in found.items() if it is not None}
        return (
            whole | {name: it.detach().cpu().clone() for name, it in self.replicated.items()} if whole else {}
        )

    def load(self, given: Mapping[str, Any]) -> tuple[set[str], set[str], list[str]]:
        """Copy the tensors of a state_dict into these; returns the names that it lacks, those that are none of these, and
        what does not fit, a sentence each.

        A row for each class may be given as a DTensor that is split as these are, or as the whole tensor [C, ...].
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
                    f"{name}: found {found}; wanted {self._wanted(name, target)}; torch.distributed.checkpoint "
                    "loads what another number of ranks has saved"
                )
            elif part.data_ptr() != target.data_ptr():  # else it was filled in place
                target.copy_(part)
        return names - given.keys(), given.keys() - names, errors

    def _class_ids(self) -> Tensor:
        """The class of each row, which tells one rank's rows from another's wherever a state was copied to."""
        return torch.arange(self._owned.start, self._owned.stop, dtype=torch.int32)

    @property
    def _owned(self) -> range:
        rank, world_size = comm.place_in(self.group)
        return class_range(self.num_classes, rank, world_size)

    def _of_others(self, ids: Any) -> str | None:
        """Return an error message if the rows belong to another rank; None if not, or if their shapes tell it later."""
        mine, own = self._part(ids), self._class_ids()
        if not isinstance(mine, Tensor) or mine.dim() != 1 or torch.equal(mine.cpu().to(own), own):
            return None
        if not len(mine) or not len(own):
            return None  # of another number of ranks, as shapes say
        return (
            f"expected rows of the classes {self._owned.start} to {self._owned.stop - 1}, got those of "
            f"{int(mine[0])} to {int(mine[-1])}, which another rank saved; save head.full_state_dict() on rank 0, or use "
            "torch.distributed.checkpoint"
        )

    def _part(self, value: Any) -> Any:
        """This rank's rows of a value."""
        local = dtensors.local_rows(value)
        if local is not None:
            return local
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != self.num_classes:
            return None
        return value[self._owned.start : self._owned.stop]

    def _wanted(self, name: str, target: torch.Tensor) -> list[int]:
        return [self.num_classes, *target.shape[1:]] if name in self.shards else list(target.shape)


class SavedModule(FixedModule):
    """A module whose state_dict() has what it says itself, and no parameters or buffers.

    Its tensors are attributes under their names in the state, as PyTorch's helpers for state dicts expect.
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
        """Return the state with the rows of all classes on rank 0, on its host, and an empty one on the other ranks.

        For loops that save on one rank, as Lightning does: `torch.save` it there, and load it on every rank, at any
        number of ranks. All ranks call it; rank 0 needs the memory of all rows.
        """
        return self._saved().whole()

    @abstractmethod
    def _saved(self) -> Saved:
        """All that the next step depends on, sharing memory."""

    @abstractmethod
    def _before_load(self) -> None:
        """RuntimeError where another state cannot be taken in now."""

    @abstractmethod
    def _loaded(self) -> None:
        """What `_saved` gives was filled with another state."""

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
        given = {name.removeprefix(prefix): it for name, it in state_dict.items() if name.startswith(prefix)}
        missing, unexpected, errors = self._saved().load(given)
        missing_keys += [f"{prefix}{name}" for name in missing]
        unexpected_keys += [f"{prefix}{name}" for name in unexpected] if strict else []
        error_msgs += errors
        self._loaded()
