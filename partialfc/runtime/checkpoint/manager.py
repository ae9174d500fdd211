"""Saving checkpoints during training and finding the latest valid one, at any world size."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from partialfc.errors import InputError
from partialfc.input_files import require_file
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
from partialfc.runtime.error_messages import format_error

RESUME_KEYWORDS = ("auto", "never")  # of `resume`; any other value is a path


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """Checkpoint that passed verification. Equal on all ranks."""

    path: Path
    manifest: Manifest
    problems: list[str]  # one line per newer checkpoint that failed, and per foreign folder


class CheckpointManager:
    """Checkpoints of one run.

    Every method is collective: all ranks must call it in the same order.
    """

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
        """Copy `state` and write it in the background; afterwards `latest`, and `best` if requested, link to it.

        Waits for a pending save.

        Args:
            step: Number of completed steps.
            state: Tensors to save.
            metadata: Description of the run, JSON types only.
            elapsed_seconds: Seconds of the run so far.
            streamed: Tensors of `state` by dotted name that are read during the write instead of copied,
                and closed afterwards.
            score: Score that `best` is selected by, or None.
            best: Whether it is the best checkpoint so far.

        Returns:
            Result of the save that was pending, or None.
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
        """Allocate the host memory of a save in advance, so that the first save takes no longer than later ones."""
        self._snapshot.copy_state(state, self._dist_ctx.rank, self._dist_ctx.world_size, streamed)

    def poll(self) -> SaveResult | None:
        """Return the result of a save that has finished since the last call, without waiting."""
        return self._writer.poll()

    def wait(self) -> SaveResult | None:
        """Wait for the pending save and return its result; None if no save is pending."""
        return self._writer.wait()

    def broadcast_best_score(self) -> float | None:
        """Return the score of the checkpoint that `best` links to, or None. Equal on all ranks."""
        best, score = self._path / BEST, None
        with comm.raise_on_all_ranks(self._dist_ctx):
            if self._dist_ctx.is_main and best.exists():
                score = read_manifest(best).score
        return comm.broadcast_object(score, self._dist_ctx.host_group)

    def broadcast_latest_metadata(self) -> dict[str, Any]:
        """Return the metadata of the latest save, without verifying its tensors; empty without a checkpoint.

        Equal on all ranks.
        """
        there, _ = self._scan_on_main()
        return next(iter(there.values())).about if there else {}

    def find_resume_point(self, resume: str) -> VerifiedCheckpoint | None:
        """Return the checkpoint that `auto`, `never` or a path selects, or None to start a new run.

        `auto` selects the latest valid save; newer damaged ones are renamed.

        Raises:
            CollectiveInputError: If no checkpoint is valid, if the path is not a checkpoint, or if
                `never` would mix two runs in one folder.
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
                    f"checkpoint.resume: never, but {next(iter(there))} exists; choose another `output`"
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
                f"{'; '.join(problems)}; no valid checkpoint is left; choose another `output` to start a new run"
            )
        return None

    def load(
        self,
        checkpoint: VerifiedCheckpoint,
        state: NestedState,
        is_optional: Callable[[str], bool] = lambda _: False,
    ) -> list[str]:
        """Load a checkpoint into the tensors of `state`, in place.

        Args:
            checkpoint: Checkpoint to load.
            state: Tensors to fill.
            is_optional: Whether the checkpoint may lack the tensor of a dotted name.

        Returns:
            Names of tensors that the checkpoint lacks; they are unchanged.

        Raises:
            CollectiveInputError: If the tensors differ from the saved ones.
        """
        flat = flatten_state(state)
        lacking = [name for name in flat if name not in checkpoint.manifest.tensors and is_optional(name)]
        with comm.raise_on_all_ranks(self._dist_ctx):
            for name, tensor in flat.items():
                if name not in lacking:
                    _load_tensor(tensor, name, checkpoint)
        return lacking

    def _scan_on_main(self) -> tuple[dict[Path, Manifest], list[str]]:
        """Scan the folder on rank 0 and broadcast the result."""
        seen: tuple[dict[Path, Manifest], list[str]] = ({}, [])
        with comm.raise_on_all_ranks(self._dist_ctx):
            if self._dist_ctx.is_main:
                seen = scan_checkpoints(self._path)
        return comm.broadcast_object(seen, self._dist_ctx.host_group)

    def _find_damage(self, path: Path, manifest: Manifest) -> str | None:
        """Return the damage of a checkpoint's files, or None; every rank verifies a part of them. Equal on all ranks.

        Raises:
            CollectiveInputError: If a file cannot be read; this may be temporary and proves no damage.
        """
        mine = list(manifest.files.items())[self._dist_ctx.rank :: self._dist_ctx.world_size]
        with comm.raise_on_all_ranks(self._dist_ctx):
            found = next((it for it in (_file_damage(path / name, file) for name, file in mine) if it), None)
        return next(
            (it for it in comm.all_gather_object(found, self._dist_ctx.host_group) if it is not None), None
        )


@functools.lru_cache
def _verify(path: Path, expected: FileDigest, size: int, changed: int) -> None:
    """Raise InputError if a file is damaged. An unchanged file is read only once."""
    if damage := _file_damage(path, expected):
        raise InputError(damage)


def _file_damage(path: Path, expected: Any) -> str | None:
    try:
        require_file(path)
        found = compute_digest(path)
    except (FileNotFoundError, InputError) as error:
        return format_error(error)
    if found == expected:
        return None
    what = "damaged" if found.bytes == expected.bytes else f"{found.bytes} bytes of {expected.bytes}"
    return f"{path}: {what}"


def _load_tensor(tensor: Tensor, name: str, checkpoint: VerifiedCheckpoint) -> None:
    stored = checkpoint.manifest.tensors.get(name)
    if stored is None:
        raise InputError(f"checkpoint {checkpoint.path}: written by another version, without {name}")
    was, expected = (stored.dtype, stored.shape), (dtype_name(tensor), list(tensor.shape))
    if was != expected:
        raise InputError(
            f"checkpoint {checkpoint.path}: {name} is {was[0]} {was[1]}, the recipe requires {expected[0]} {expected[1]}"
        )
    rows, first = dtensors.local_rows_and_offset(tensor)
    read_rows_into(rows.detach(), name, first, stored, checkpoint.path)


def read_rows(path: Path, name: str, first: int, last: int) -> Tensor:
    """Return rows [first, last) of a tensor of a checkpoint's state, such as `head.centers`, on the CPU.

    Files are compared with their digests before any row of them is read. Needs no process group.

    Raises:
        InputError: If the path is not a checkpoint, is damaged, or has no such rows.
    """
    manifest = read_manifest(path)
    stored = manifest.tensors.get(name)
    if stored is None:
        raise InputError(f"{path}: contains no {name}")
    for file, (begin, end) in stored.pieces.items():
        if begin < last and end > first:
            facts = (path / file).stat()
            _verify(path / file, manifest.files[file], facts.st_size, facts.st_mtime_ns)
    rows = empty_like_entry(stored, last - first)
    read_rows_into(rows, name, first, stored, path)
    return rows


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of one part of a checkpoint's state, such as `backbone`, on the CPU.

    Needs no process group.

    Raises:
        InputError: If the path is not a checkpoint or is damaged.
    """
    manifest = read_manifest(path)
    expected = {name: it for name, it in manifest.tensors.items() if name.startswith(f"{prefix}.")}
    for file in sorted({file for stored in expected.values() for file in stored.pieces}):
        if damage := _file_damage(path / file, manifest.files[file]):
            raise InputError(damage)
    tensors = {}
    for name, stored in expected.items():
        tensors[name.removeprefix(f"{prefix}.")] = tensor = empty_like_entry(stored)
        read_rows_into(tensor, name, 0, stored, path)
    return tensors
