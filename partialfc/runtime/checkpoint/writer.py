"""Background thread that writes snapshots and reports the results."""

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
from partialfc.runtime.checkpoint.manifest import FileDigest, Manifest, TensorEntry
from partialfc.runtime.checkpoint.safetensors_io import TensorSource, write_shard
from partialfc.runtime.comm import DistContext
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import name_os_errors
from partialfc.runtime.host_memory import bind_thread

_DUTY_CYCLE = (
    0.25  # fraction of the time spent on writing while a run continues; the rest is left to the steps
)


@dataclass
class SaveJob:
    """Work of one save."""

    step: int
    seconds: float
    score: float | None
    is_best: bool
    about: dict[str, Any]
    tensors: dict[str, TensorSource]  # tensors of this rank, on the host
    layout: dict[str, Any]  # see StateSnapshot.copy_state
    stall_seconds: float  # duration of the snapshot
    wait_until_ready: Callable[[], None]  # returns when `tensors` are filled


@dataclass(frozen=True)
class SaveResult:
    """Result of a save: its path or its problem. Equal on all ranks, except its warnings."""

    step: int
    path: Path
    write_seconds: float  # duration of the write
    stall_seconds: float  # duration for which the steps waited
    problem: str | None
    warnings: list[str]  # what could not be removed or linked; on rank 0


class _SaveFailedError(Exception):
    """Save that failed on some rank because of a system error."""


class Throttle:
    """Pause after each piece of work that leaves CPU and disk to the steps, unless a caller is waiting."""

    def __init__(self, hurry: threading.Event) -> None:
        self._hurry, self._since = hurry, time.perf_counter()

    def __call__(self) -> None:
        """Pause if due."""
        taken = time.perf_counter() - self._since
        if not self._hurry.is_set():
            self._hurry.wait(min(1.0, taken * (1 / _DUTY_CYCLE - 1)))
        self._since = time.perf_counter()


class Writer:
    """Background writer of one save at a time.

    All ranks must call its methods in the same order. Its thread issues collectives of `checkpoint_group`.
    """

    def __init__(self, folder: CheckpointFolder, dist_ctx: DistContext) -> None:
        self._folder, self._dist_ctx = folder, dist_ctx
        self._thread: threading.Thread | None = None
        self._outcome: SaveResult | None = None
        self._defect: BaseException | None = None
        self._hurry = threading.Event()

    def start(self, job: SaveJob) -> None:
        """Start to write. The previous save must have been waited for."""
        assert self._thread is None
        self._hurry.clear()
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self) -> SaveResult | None:
        """Return the result of the pending save if it has finished, without waiting."""
        if self._thread is None or self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> SaveResult | None:
        """Write as fast as the disk allows, and return the result; None if no save is pending."""
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

    def _run(self, job: SaveJob) -> None:
        began = time.perf_counter()
        try:
            bind_thread(self._dist_ctx.device)
            problem = None
            try:
                self._write(job)
            except _SaveFailedError as failure:
                problem = str(failure)
            taken = time.perf_counter() - began
            path = self._folder.checkpoint_path(job.step)
            self._outcome = SaveResult(
                job.step, path, taken, job.stall_seconds, problem, self._folder.take_warnings()
            )
        except BaseException as defect:  # a bug, or a group whose ranks have exited: raised by wait()
            self._defect = defect
        finally:
            for source in job.tensors.values():
                if not isinstance(source, Tensor):
                    source.close()

    def _write(self, job: SaveJob) -> None:
        self._run_on_main(lambda: self._folder.begin(job.step), job)
        name = f"rank_{self._dist_ctx.rank:05d}.safetensors"
        written: list[FileDigest] = []

        def shard() -> None:
            job.wait_until_ready()
            path = self._folder.draft_path(job.step) / name
            written.append(write_shard(path, job.tensors, Throttle(self._hurry)))

        self._run_on_all(shard, job)
        parts = comm.all_gather_object((name, written[0], job.layout), self._dist_ctx.checkpoint_group)
        self._run_on_main(lambda: self._publish(job, parts), job)

    def _publish(self, job: SaveJob, parts: list[tuple[str, FileDigest, dict[str, Any]]]) -> None:
        manifest = Manifest(
            number=self._folder.next_number(),
            step=job.step,
            seconds=job.seconds,
            score=job.score,
            about=job.about,
            files={name: file for name, file, _ in parts},
            tensors=_merge_entries([(name, described) for name, _, described in parts]),
        )
        self._folder.publish(manifest, best=job.is_best)

    def _run_on_main(self, action: Callable[[], None], job: SaveJob) -> None:
        self._run_on_all(action if self._dist_ctx.is_main else lambda: None, job)

    def _run_on_all(self, action: Callable[[], None], job: SaveJob) -> None:
        """Run an action and raise the same error on all ranks.

        Raises:
            _SaveFailedError: If a system error occurred on any rank.
            RuntimeError: If a bug occurred on any rank; contains its traceback.
        """
        problem, defect = None, None
        try:
            with name_os_errors(self._folder.checkpoint_path(job.step)):
                action()
        except OSError as error:
            problem = format_error(error)
        except Exception:  # a bug: the other ranks are notified, so that none waits forever
            defect = traceback.format_exc()
        gathered = comm.all_gather_object((problem, defect), self._dist_ctx.checkpoint_group)
        if any(it != (None, None) for it in gathered) and self._dist_ctx.is_main:
            self._folder.discard(job.step)
        for problem, defect in gathered:
            if defect is not None:
                raise RuntimeError(f"step {job.step} could not be saved:\n{defect}")
            if problem is not None:
                raise _SaveFailedError(problem)


def _merge_entries(parts: list[tuple[str, dict[str, Any]]]) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for file, described in parts:
        for name, one in described.items():
            stored = tensors.setdefault(name, TensorEntry(one["dtype"], one["shape"], {}))
            if one["rows"] is not None:
                stored.pieces[file] = one["rows"]
    return tensors
