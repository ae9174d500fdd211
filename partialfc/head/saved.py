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


@dataclass(frozen=True)
class Saved:
    """Tensors that share memory with the head's."""

    shards: dict[str, Tensor]  # [n, ...] rows of this rank's classes
    replicated: dict[str, Tensor]
    num_classes: int
    group: Group

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, those with a row for each class as DTensors [C, ...] where there is a process group."""
        sharded = {
            name: dtensors.sharded(it, self.num_classes, self.group) for name, it in self.shards.items()
        }
        return sharded | self.replicated

    def load(self, given: Mapping[str, Any]) -> tuple[set[str], set[str], list[str]]:
        """Copy the tensors of a state_dict into these; returns the names that it lacks, those that are none of these, and
        what does not fit, a sentence each.

        A row for each class may be given as a DTensor that is split as these are, or as the whole tensor [C, ...].
        """
        names, errors = self.shards.keys() | self.replicated.keys(), []
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

    def _part(self, value: Any) -> Any:
        """This rank's rows of a value."""
        local = dtensors.local_rows(value)
        if local is not None:
            return local
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != self.num_classes:
            return None
        rank, world_size = comm.place_in(self.group)
        owned = class_range(self.num_classes, rank, world_size)
        return value[owned.start : owned.stop]

    def _wanted(self, name: str, target: torch.Tensor) -> list[int]:
        return [self.num_classes, *target.shape[1:]] if name in self.shards else list(target.shape)


class SavedModule(FixedModule):
    """A module whose state_dict() has what it says itself, and no parameters or buffers."""

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
