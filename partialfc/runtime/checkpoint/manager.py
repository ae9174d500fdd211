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
from partialfc.runtime.checkpoint.folder import BEST, CheckpointFolder, scan
from partialfc.runtime.checkpoint.manifest import Manifest, ShardFile, read_manifest
from partialfc.runtime.checkpoint.safetensors_io import Rows, digest_of, dtype_name, empty, fill
from partialfc.runtime.checkpoint.state_snapshot import Snapshot, State, flattened
from partialfc.runtime.checkpoint.writer import Job, Outcome, Writer
from partialfc.runtime.comm import Ranks
from partialfc.runtime.exit_codes import one_line

WORDS = ("auto", "never")  # of `resume`; anything else is a path


@dataclass(frozen=True)
class Found:
    """A checkpoint that verified. Equal on all ranks."""

    path: Path
    manifest: Manifest
    problems: list[str]  # a line on each newer one that did not, and on what is no checkpoint


class Checkpoints:
    """Those of one run, in `folder`. All ranks call the methods alike."""

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks) -> None:
        self._path, self._ranks = folder, ranks
        self._folder = CheckpointFolder(folder, keep)
        self._snapshot, self._writer = Snapshot(), Writer(self._folder, ranks)

    def save(
        self,
        step: int,
        state: State,
        about: dict[str, Any],
        *,
        seconds: float,
        streamed: Mapping[str, Rows] | None = None,
        score: float | None = None,
        best: bool = False,
    ) -> Outcome | None:
        """Copy `state`, and have it written beside the steps that follow; `latest` then leads to it, and with `best` that
        link, too.

        Waits for a save that is still under way, and returns its outcome. about: of the run, in JSON's types. seconds: of
        the run so far. streamed: tensors of `state`, by their dotted names, that are read while they are written instead
        of copied, and then closed.
        """
        began = time.perf_counter()
        before = self._writer.wait()
        tensors, described = self._snapshot.take(state, self._ranks.rank, self._ranks.size, streamed or {})
        stalled = time.perf_counter() - began
        job = Job(step, seconds, score, best, about, tensors, described, stalled, ready=self._snapshot.wait)
        self._writer.start(job)
        return before

    def reserve(self, state: State, streamed: Mapping[str, Rows]) -> None:
        """Take the memory that a save copies `state` to, so that the first save takes no longer than others."""
        self._snapshot.take(state, self._ranks.rank, self._ranks.size, streamed)

    def finished(self) -> Outcome | None:
        """The outcome of a save that has come to its end since the last call; never waits."""
        return self._writer.finished()

    def wait(self) -> Outcome | None:
        """The outcome of the save under way; None where there is none."""
        return self._writer.wait()

    def best_score(self) -> float | None:
        """The score of the checkpoint that `best` leads to; None where there is none. Equal on all ranks."""
        best, score = self._path / BEST, None
        with comm.fail_on_all_ranks(self._ranks):
            if self._ranks.first and best.exists():
                score = read_manifest(best).score
        return comm.of_first_rank(score, self._ranks.host)

    def newest_about(self) -> dict[str, Any]:
        """What the newest save says of its run, the files of tensors unverified; empty where there is none. Equal on all
        ranks.
        """
        there, _ = self._scanned()
        return next(iter(there.values())).about if there else {}

    def to_resume(self, resume: str) -> Found | None:
        """The checkpoint that `auto`, `never` or a path means; None: start afresh.

        auto is the newest save that verifies; damaged ones that are newer are renamed. CollectiveInputError where there
        are checkpoints but none verifies, where the path is none, and where `never` would mix two runs in one folder.
        """
        if resume not in WORDS:
            with comm.fail_on_all_ranks(self._ranks):
                manifest = read_manifest(Path(resume))
            found = Found(Path(resume), manifest, [])
            comm.raise_first(self._damage(found.path, manifest), self._ranks)
            return found
        there, problems = self._scanned()
        if resume == "never":
            if there:
                raise comm.CollectiveInputError(
                    f"checkpoint.resume: never, but {next(iter(there))} is there; name another `output`"
                )
            return None
        for path, manifest in there.items():
            damage = self._damage(path, manifest)
            if damage is None:
                return Found(path, manifest, problems)
            problems.append(damage)
            with comm.fail_on_all_ranks(self._ranks):
                if self._ranks.first:
                    self._folder.set_aside(path)
        if problems:
            raise comm.CollectiveInputError(
                f"{'; '.join(problems)}; no checkpoint is left to go on from; name another `output` to start afresh"
            )
        return None

    def load(
        self, found: Found, state: State, may_lack: Callable[[str], bool] = lambda _: False
    ) -> list[str]:
        """Fill the tensors of `state` in place. CollectiveInputError where they are not those that were saved.

        may_lack: whether the checkpoint may be without the tensor of a dotted name; those that it is without are left as they
        are, and their names returned.
        """
        flat = flattened(state)
        lacking = [name for name in flat if name not in found.manifest.tensors and may_lack(name)]
        with comm.fail_on_all_ranks(self._ranks):
            for name, tensor in flat.items():
                if name not in lacking:
                    _fill(tensor, name, found)
        return lacking

    def _scanned(self) -> tuple[dict[Path, Manifest], list[str]]:
        """What the first rank sees."""
        seen: tuple[dict[Path, Manifest], list[str]] = ({}, [])
        with comm.fail_on_all_ranks(self._ranks):
            if self._ranks.first:
                seen = scan(self._path)
        return comm.of_first_rank(seen, self._ranks.host)

    def _damage(self, path: Path, manifest: Manifest) -> str | None:
        """What is wrong with a checkpoint's files, of which every rank reads its share; None: nothing. Equal on all.

        CollectiveInputError where one cannot be read: that may pass, and says nothing of what is in it.
        """
        mine = list(manifest.files.items())[self._ranks.rank :: self._ranks.size]
        with comm.fail_on_all_ranks(self._ranks):
            found = next((it for it in (_damage_of(path / name, file) for name, file in mine) if it), None)
        return next((it for it in comm.of_all_ranks(found, self._ranks.host) if it is not None), None)


@functools.lru_cache
def _verify(path: Path, expected: ShardFile, size: int, changed: int) -> None:
    """Raise InputError if a file is damaged; a file that did not change is read once."""
    if damage := _damage_of(path, expected):
        raise InputError(damage)


def _damage_of(path: Path, expected: Any) -> str | None:
    try:
        found = digest_of(path)
    except FileNotFoundError as error:
        return one_line(error)
    if found == expected:
        return None
    what = "damaged" if found.bytes == expected.bytes else f"{found.bytes} bytes of {expected.bytes}"
    return f"{path}: {what}"


def _fill(tensor: Tensor, name: str, found: Found) -> None:
    stored = found.manifest.tensors.get(name)
    if stored is None:
        raise InputError(f"checkpoint {found.path}: of another version, which did not write {name}")
    was, wanted = (stored.dtype, stored.shape), (dtype_name(tensor), list(tensor.shape))
    if was != wanted:
        raise InputError(
            f"checkpoint {found.path}: {name} is {was[0]} {was[1]}, the recipe makes it {wanted[0]} {wanted[1]}"
        )
    rows, first = dtensors.row_range(tensor)
    fill(rows.detach(), name, first, stored, found.path)


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
    rows = empty(stored, last - first)
    fill(rows, name, first, stored, path)
    return rows


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint's state, such as `backbone`, on the CPU; needs no process group.

    InputError where the path is no checkpoint, or damaged.
    """
    manifest = read_manifest(path)
    wanted = {name: it for name, it in manifest.tensors.items() if name.startswith(f"{part}.")}
    for file in sorted({file for stored in wanted.values() for file in stored.pieces}):
        if damage := _damage_of(path / file, manifest.files[file]):
            raise InputError(damage)
    tensors = {}
    for name, stored in wanted.items():
        tensors[name.removeprefix(f"{part}.")] = tensor = empty(stored)
        fill(tensor, name, 0, stored, path)
    return tensors
