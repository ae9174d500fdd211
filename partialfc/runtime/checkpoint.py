"""Checkpoints: the state of a run in folders that are there whole or not at all, loadable at any world size.

Written by torch.distributed.checkpoint, class centres as DTensors sharded by rows. The folder
`step_00001000` is written under another name and renamed; the link `latest` then moves to it.
"""

import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.runtime.comm import CollectiveInputError, Ranks

_FACTS = "run.json"
_LATEST = "latest"

State = dict[str, Any]  # of tensors, maybe nested


class Checkpoints:
    """Those of one run, in `folder`. All ranks call the methods alike.

    facts: what must not change between save and load, such as the number of classes; compared before loading.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], *, keep: int, ranks: Ranks) -> None:
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._facts: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(facts))  # as they will be read

    def save(self, step: int, state: State, seconds: float) -> None:
        """Write `state`, let `latest` point to it, and remove the oldest but `keep`. seconds: of the run so far."""
        path = self._folder / f"step_{step:08d}"
        temporary = self._folder / f".{path.name}.draft"
        with comm.fail_on_all_ranks(self._ranks):
            if self._ranks.first:
                self._folder.mkdir(parents=True, exist_ok=True)
                for left in self._folder.glob(".step_*.draft"):
                    shutil.rmtree(left)
        with _one_line_of_all_ranks(temporary):
            dcp.save(state, checkpoint_id=temporary, process_group=self._ranks.host)
        with comm.fail_on_all_ranks(self._ranks):
            if self._ranks.first:
                facts = {"step": step, "seconds": seconds, **self._facts}
                (temporary / _FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
                self._publish(temporary, path)

    def to_resume(self, resume: str) -> Path | None:
        """The checkpoint that `auto`, `never` or a path means; None: start afresh. Equal on all ranks.

        InputError where the path is no checkpoint, and where `never` would mix two runs in one folder.
        """
        latest = self._folder / _LATEST
        newest = latest.resolve() if latest.exists() else max(self._folder.glob("step_*"), default=None)
        if resume == "auto":
            return newest
        if resume == "never":
            if newest is not None:
                raise InputError(f"checkpoint.resume: never, but {newest} is there; name another `output`")
            return None
        if not (Path(resume) / _FACTS).exists():
            raise InputError(
                f"checkpoint.resume: {resume} is no checkpoint; wanted auto, never or a folder step_*"
            )
        return Path(resume)

    def load(self, path: Path, state: State) -> tuple[int, float]:
        """Fill the tensors of `state` in place; returns the step and the run's seconds. Equal on all ranks.

        CollectiveInputError where the checkpoint is another run's, or damaged.
        """
        with comm.fail_on_all_ranks(self._ranks):
            facts = _read_facts(path)
            for name, wanted in self._facts.items():
                if name not in facts:
                    raise InputError(
                        f"checkpoint {path}: of an earlier version, which did not write {name}; name another `output`"
                    )
                if (found := facts.get(name)) != wanted:
                    raise InputError(
                        f"checkpoint {path}: made with {name} {found}, the recipe says {wanted}; "
                        f"go on with {found}, or name another `output`"
                    )
        with _one_line_of_all_ranks(path):
            dcp.load(state, checkpoint_id=path, process_group=self._ranks.host)
        return int(facts["step"]), float(facts["seconds"])

    def _publish(self, temporary: Path, path: Path) -> None:
        if path.exists():  # a run that went back saves a step again
            self._remove(path)
        temporary.replace(path)
        link = self._folder / f".{_LATEST}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        os.replace(link, self._folder / _LATEST)
        by_age = sorted(self._folder.glob("step_*"), key=lambda one: (one / _FACTS).stat().st_mtime_ns)
        for old in by_age[: -self._keep]:
            self._remove(old)

    def _remove(self, path: Path) -> None:
        """At once, as far as others see: a process killed meanwhile leaves a temporary, not half a checkpoint."""
        aside = self._folder / f".{path.name}.removed.draft"
        path.replace(aside)
        shutil.rmtree(aside)


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written. InputError where it is none."""
    if not (path / _FACTS).exists():
        raise InputError(f"{path}: no checkpoint; wanted a folder step_*, or a run's")
    return int(_read_facts(path)["step"])


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint's state, such as `backbone`, on the CPU; needs no process group.

    InputError where the path is no checkpoint, or damaged.
    """
    if not (path / _FACTS).exists():
        raise InputError(f"{path}: no checkpoint; wanted a folder step_*, or a run's")
    try:
        reader = dcp.FileSystemReader(path)
        stored = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(facts.size, dtype=facts.properties.dtype)
            for name, facts in stored.items()
            if name.startswith(f"{part}.") and isinstance(facts, TensorStorageMetadata)
        }
        with warnings.catch_warnings(action="ignore"):  # that there is no process group
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: damaged: {' '.join(str(error).split())[:100]}") from None
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items()}


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode((path / _FACTS).read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InputError(f"checkpoint {path}: {_FACTS}: {error}") from None


@contextmanager
def _one_line_of_all_ranks(path: Path) -> Iterator[None]:
    """What torch.distributed.checkpoint raises on all ranks at once, in one line."""
    try:
        yield
    except CheckpointException as error:
        rank, (reason, _) = min(error.failures.items())
        raise CollectiveInputError(
            f"checkpoint {path}: rank {rank}: {' '.join(str(reason).split())}"
        ) from None
