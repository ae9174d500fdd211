"""Saving a run while it goes on, and finding the newest state of it that is whole, at any number of ranks."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from partialfc.errors import InputError
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint.folder import BEST, CheckpointFolder, scan_checkpoints
from partialfc.runtime.checkpoint.manifest import FileDigest, Manifest, read_manifest
from partialfc.runtime.checkpoint.safetensors_io import (
    StreamedRows,
    compute_digest,
    dtype_name,
    empty_like_entry,
    read_rows_into,
)
from partialfc.runtime.checkpoint.state_snapshot import NestedState, StateSnapshot, flatten_state
from partialfc.runtime.checkpoint.writer import SaveJob, SaveResult, Writer
from partialfc.runtime.comm import DistContext
from partialfc.runtime.exit_codes import format_error

RESUME_KEYWORDS = ("auto", "never")  # of `resume`; anything else is a path


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint that verified. Equal on all ranks."""

    path: Path
    manifest: Manifest
    problems: list[str]  # a line on each newer one that did not, and on what is no checkpoint


class CheckpointManager:
    """Those of one run, in `folder`. All ranks call the methods alike."""

    def __init__(self, folder: Path, *, keep: int, dist_ctx: DistContext) -> None:
        self._path, self._dist_ctx = folder, dist_ctx
        self._folder = CheckpointFolder(folder, keep)
        self._snapshot, self._writer = StateSnapshot(), Writer(self._folder, dist_ctx)

    def save(
        self,
        step: int,
        state: NestedState,
        metadata: dict[str, Any],
        *,
        elapsed_seconds: float,
        streamed: Mapping[str, StreamedRows] | None = None,
        score: float | None = None,
        best: bool = False,
    ) -> SaveResult | None:
        """Copy `state`, and have it written beside the steps that follow; `latest` then leads to it, and with `best` that
        link, too.

        Waits for a save that is still under way, and returns its outcome. about: of the run, in JSON's types. seconds: of
        the run so far. streamed: tensors of `state`, by their dotted names, that are read while they are written instead
        of copied, and then closed.
        """
        began = time.perf_counter()
        before = self._writer.wait()
        tensors, described = self._snapshot.copy_state(
            state, self._dist_ctx.rank, self._dist_ctx.world_size, streamed or {}
        )
        stalled = time.perf_counter() - began
        job = SaveJob(
            step,
            elapsed_seconds,
            score,
            best,
            metadata,
            tensors,
            described,
            stalled,
            wait_until_ready=self._snapshot.wait,
        )
        self._writer.start(job)
        return before

    def preallocate(self, state: NestedState, streamed: Mapping[str, StreamedRows]) -> None:
        """Take the memory that a save copies `state` to, so that the first save takes no longer than others."""
        self._snapshot.copy_state(state, self._dist_ctx.rank, self._dist_ctx.world_size, streamed)

    def poll(self) -> SaveResult | None:
        """The outcome of a save that has come to its end since the last call; never waits."""
        return self._writer.poll()

    def wait(self) -> SaveResult | None:
        """The outcome of the save under way; None where there is none."""
        return self._writer.wait()

    def best_score(self) -> float | None:
        """The score of the checkpoint that `best` leads to; None where there is none. Equal on all ranks."""
        best, score = self._path / BEST, None
        with comm.raise_on_all_ranks(self._dist_ctx):
            if self._dist_ctx.is_main and best.exists():
                score = read_manifest(best).score
        return comm.broadcast_object(score, self._dist_ctx.host_group)

    def latest_metadata(self) -> dict[str, Any]:
        """What the newest save says of its run, the files of tensors unverified; empty where there is none. Equal on all
        ranks.
        """
        there, _ = self._scan_on_main()
        return next(iter(there.values())).about if there else {}

    def find_resume_point(self, resume: str) -> VerifiedCheckpoint | None:
        """The checkpoint that `auto`, `never` or a path means; None: start afresh.

        auto is the newest save that verifies; damaged ones that are newer are renamed. CollectiveInputError where there
        are checkpoints but none verifies, where the path is none, and where `never` would mix two runs in one folder.
        """
        if resume not in RESUME_KEYWORDS:
            with comm.raise_on_all_ranks(self._dist_ctx):
                manifest = read_manifest(Path(resume))
            found = VerifiedCheckpoint(Path(resume), manifest, [])
            comm.raise_first_error(self._find_damage(found.path, manifest), self._dist_ctx)
            return found
        there, problems = self._scan_on_main()
        if resume == "never":
            if there:
                raise comm.CollectiveInputError(
                    f"checkpoint.resume: never, but {next(iter(there))} is there; name another `output`"
                )
            return None
        for path, manifest in there.items():
            damage = self._find_damage(path, manifest)
            if damage is None:
                return VerifiedCheckpoint(path, manifest, problems)
            problems.append(damage)
            with comm.raise_on_all_ranks(self._dist_ctx):
                if self._dist_ctx.is_main:
                    self._folder.quarantine(path)
        if problems:
            raise comm.CollectiveInputError(
                f"{'; '.join(problems)}; no checkpoint is left to go on from; name another `output` to start afresh"
            )
        return None

    def load(
        self,
        checkpoint: VerifiedCheckpoint,
        state: NestedState,
        is_optional: Callable[[str], bool] = lambda _: False,
    ) -> list[str]:
        """Fill the tensors of `state` in place. CollectiveInputError where they are not those that were saved.

        may_lack: whether the checkpoint may be without the tensor of a dotted name; those that it is without are left as they
        are, and their names returned.
        """
        flat = flatten_state(state)
        lacking = [name for name in flat if name not in checkpoint.manifest.tensors and is_optional(name)]
        with comm.raise_on_all_ranks(self._dist_ctx):
            for name, tensor in flat.items():
                if name not in lacking:
                    _load_tensor(tensor, name, checkpoint)
        return lacking

    def _scan_on_main(self) -> tuple[dict[Path, Manifest], list[str]]:
        """What the first rank sees."""
        seen: tuple[dict[Path, Manifest], list[str]] = ({}, [])
        with comm.raise_on_all_ranks(self._dist_ctx):
            if self._dist_ctx.is_main:
                seen = scan_checkpoints(self._path)
        return comm.broadcast_object(seen, self._dist_ctx.host_group)

    def _find_damage(self, path: Path, manifest: Manifest) -> str | None:
        """What is wrong with a checkpoint's files, of which every rank reads its share; None: nothing. Equal on all.

        CollectiveInputError where one cannot be read: that may pass, and says nothing of what is in it.
        """
        mine = list(manifest.files.items())[self._dist_ctx.rank :: self._dist_ctx.world_size]
        with comm.raise_on_all_ranks(self._dist_ctx):
            found = next((it for it in (_file_damage(path / name, file) for name, file in mine) if it), None)
        return next(
            (it for it in comm.all_gather_object(found, self._dist_ctx.host_group) if it is not None), None
        )


@functools.lru_cache
def _verify(path: Path, expected: FileDigest, size: int, changed: int) -> None:
    """Raise InputError if a file is damaged; a file that did not change is read once."""
    if damage := _file_damage(path, expected):
        raise InputError(damage)


def _file_damage(path: Path, expected: Any) -> str | None:
    try:
        found = compute_digest(path)
    except FileNotFoundError as error:
        return format_error(error)
    if found == expected:
        return None
    what = "damaged" if found.bytes == expected.bytes else f"{found.bytes} bytes of {expected.bytes}"
    return f"{path}: {what}"


def _load_tensor(tensor: Tensor, name: str, checkpoint: VerifiedCheckpoint) -> None:
    stored = checkpoint.manifest.tensors.get(name)
    if stored is None:
        raise InputError(f"checkpoint {checkpoint.path}: of another version, which did not write {name}")
    was, wanted = (stored.dtype, stored.shape), (dtype_name(tensor), list(tensor.shape))
    if was != wanted:
        raise InputError(
            f"checkpoint {checkpoint.path}: {name} is {was[0]} {was[1]}, the recipe makes it {wanted[0]} {wanted[1]}"
        )
    rows, first = dtensors.local_rows_and_offset(tensor)
    read_rows_into(rows.detach(), name, first, stored, checkpoint.path)


def read_rows(path: Path, name: str, first: int, last: int) -> Tensor:
    """Return rows [first, last) of a tensor of a checkpoint's state, such as `head.centers`, on the CPU.

    Files are compared with their digests before the first row of them is read. Needs no process group.

    Raises:
        InputError: The path is no checkpoint, is damaged, or has no such rows.
    """
    manifest = read_manifest(path)
    stored = manifest.tensors.get(name)
    if stored is None:
        raise InputError(f"{path}: no {name} in it")
    for file, (begin, end) in stored.pieces.items():
        if begin < last and end > first:
            facts = (path / file).stat()
            _verify(path / file, manifest.files[file], facts.st_size, facts.st_mtime_ns)
    rows = empty_like_entry(stored, last - first)
    read_rows_into(rows, name, first, stored, path)
    return rows


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint's state, such as `backbone`, on the CPU; needs no process group.

    InputError where the path is no checkpoint, or damaged.
    """
    manifest = read_manifest(path)
    wanted = {name: it for name, it in manifest.tensors.items() if name.startswith(f"{prefix}.")}
    for file in sorted({file for stored in wanted.values() for file in stored.pieces}):
        if damage := _file_damage(path / file, manifest.files[file]):
            raise InputError(damage)
    tensors = {}
    for name, stored in wanted.items():
        tensors[name.removeprefix(f"{prefix}.")] = tensor = empty_like_entry(stored)
        read_rows_into(tensor, name, 0, stored, path)
    return tensors
