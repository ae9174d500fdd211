"""The thread that writes what a snapshot has copied, and tells when it is in place."""

import errno
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from partialfc.runtime import comm
from partialfc.runtime.checkpoint.folder import CheckpointFolder
from partialfc.runtime.checkpoint.manifest import Manifest, ShardFile, Stored
from partialfc.runtime.checkpoint.safetensors_io import Source, write_shard
from partialfc.runtime.comm import Ranks
from partialfc.runtime.exit_codes import one_line
from partialfc.runtime.host_memory import bind_thread

_SHARE = 0.25  # of the time that writing takes while a run goes on; the rest it leaves to the steps


@dataclass
class Job:
    """What one save has to do."""

    step: int
    seconds: float
    score: float | None
    best: bool
    about: dict[str, Any]
    tensors: dict[str, Source]  # this rank's, on the host
    described: dict[str, Any]  # see Snapshot.take
    stalled: float  # seconds that the snapshot took
    ready: Callable[[], None]  # returns when `tensors` are filled


@dataclass(frozen=True)
class Outcome:
    """Of a save: where it lies, or why it does not. Equal on all ranks."""

    step: int
    path: Path
    seconds: float  # that writing took
    stalled: float  # seconds for which the steps waited
    problem: str | None


class _Failed(Exception):
    """A save that the system ended on some rank; says why."""


class Pace:
    """Called after each piece of work: leaves the processor and the disk to the steps most of the time, unless somebody
    waits.
    """

    def __init__(self, hurry: threading.Event) -> None:
        self._hurry, self._since = hurry, time.perf_counter()

    def __call__(self) -> None:
        taken = time.perf_counter() - self._since
        if not self._hurry.is_set():
            self._hurry.wait(min(1.0, taken * (1 / _SHARE - 1)))
        self._since = time.perf_counter()


class Writer:
    """Writes one job at a time. All ranks call the methods alike; the thread issues collectives of `ranks.saving`."""

    def __init__(self, folder: CheckpointFolder, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._defect: BaseException | None = None
        self._hurry = threading.Event()

    def start(self, job: Job) -> None:
        """Begin to write. The job before must have been waited for."""
        assert self._thread is None
        self._hurry.clear()
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def finished(self) -> Outcome | None:
        """The outcome of the job under way, if there is one that has ended; never waits."""
        if self._thread is None or self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> Outcome | None:
        """The outcome of the job under way, as fast as the disk allows; None where there is none."""
        if self._thread is None:
            return None
        self._hurry.set()
        self._thread.join()
        self._thread = None
        defect, self._defect = self._defect, None
        if defect is not None:
            raise defect
        outcome, self._outcome = self._outcome, None
        return outcome

    def _run(self, job: Job) -> None:
        began = time.perf_counter()
        try:
            bind_thread(self._ranks.device)
            problem = None
            try:
                self._write(job)
            except _Failed as failure:
                problem = str(failure)
            taken = time.perf_counter() - began
            path = self._folder.path_of(job.step)
            self._outcome = Outcome(job.step, path, taken, job.stalled, problem)
        except BaseException as defect:  # of ours, or of a group whose ranks are gone: raised by wait()
            self._defect = defect
        finally:
            for source in job.tensors.values():
                if not isinstance(source, Tensor):
                    source.close()

    def _write(self, job: Job) -> None:
        self._on_first(lambda: self._folder.begin(job.step), job)
        name = f"rank_{self._ranks.rank:05d}.safetensors"
        written: list[ShardFile] = []

        def shard() -> None:
            job.ready()
            path = self._folder.draft_of(job.step) / name
            written.append(write_shard(path, job.tensors, Pace(self._hurry)))

        self._together(shard, job)
        parts = comm.of_all_ranks((name, written[0], job.described), self._ranks.saving)
        self._on_first(lambda: self._publish(job, parts), job)

    def _publish(self, job: Job, parts: list[tuple[str, ShardFile, dict[str, Any]]]) -> None:
        manifest = Manifest(
            number=self._folder.next_number(),
            step=job.step,
            seconds=job.seconds,
            score=job.score,
            about=job.about,
            files={name: file for name, file, _ in parts},
            tensors=_joined([(name, described) for name, _, described in parts]),
        )
        self._folder.publish(manifest, best=job.best)

    def _on_first(self, action: Callable[[], None], job: Job) -> None:
        self._together(action if self._ranks.first else lambda: None, job)

    def _together(self, action: Callable[[], None], job: Job) -> None:
        """_Failed on all ranks where the system fails the action on one; RuntimeError with the traceback where we do."""
        problem, defect = None, None
        try:
            action()
        except OSError as error:
            problem = _of_the_disk(error, self._folder.path_of(job.step))
        except Exception:  # of ours: the others are told, too, so that none waits for ever
            defect = traceback.format_exc()
        everyones = comm.of_all_ranks((problem, defect), self._ranks.saving)
        if any(it != (None, None) for it in everyones) and self._ranks.first:
            self._folder.discard(job.step)
        for problem, defect in everyones:
            if defect is not None:
                raise RuntimeError(f"step {job.step} could not be saved:\n{defect}")
            if problem is not None:
                raise _Failed(problem)


def _joined(parts: list[tuple[str, dict[str, Any]]]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for file, described in parts:
        for name, one in described.items():
            stored = tensors.setdefault(name, Stored(one["dtype"], one["shape"], {}))
            if one["rows"] is not None:
                stored.pieces[file] = one["rows"]
    return tensors


def _of_the_disk(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or path}: {error.strerror}: the disk is full"
    return one_line(error) if error.filename is not None else f"{path}: {error.strerror or one_line(error)}"
