"""A run's folder of checkpoints: which are there, how one comes in, and which go. For one process at a time.

A checkpoint is the folder `step_00001000`: written under another name, synced, renamed. `latest` links to the newest,
`best` to the one with the best score. `step_*.damaged.*` is what did not verify; nobody touches it again.
"""

import os
import re
import shutil
from pathlib import Path

from partialfc.errors import InputError
from partialfc.runtime.checkpoint.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from partialfc.runtime.files import fsync_path

LATEST, BEST = "latest", "best"
_NAME = re.compile(r"step_\d+")


def scan_checkpoints(folder: Path) -> tuple[dict[Path, Manifest], list[str]]:
    """The checkpoints whose run.json is whole, newest save first; and a line on each of the others. OSError where one
    cannot be read.
    """
    found, problems = {}, []
    for path in sorted(folder.glob("step_*")):
        if _NAME.fullmatch(path.name):
            try:
                found[path] = read_manifest(path)
            except InputError as error:
                problems.append(str(error))
    by_age = sorted(found, key=lambda path: found[path].number, reverse=True)
    return {path: found[path] for path in by_age}, problems


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint by its run.json, the files of tensors unverified; None where there is none. InputError where
    none can be read.
    """
    found, problems = scan_checkpoints(folder)
    if problems and not found:
        raise InputError("; ".join(problems))
    return next(iter(found), None)


class CheckpointFolder:
    """keep: how many of the newest stay, besides the best."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step comes to lie."""
        return self._folder / f"step_{step:08d}"

    def draft_path(self, step: int) -> Path:
        """Where it is written."""
        return self._folder / f".{self.checkpoint_path(step).name}.draft"

    def begin(self, step: int) -> None:
        """Make the folder to write into; what a killed process left of others goes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        fsync_path(self._folder.parent)
        for left in self._folder.glob(".step_*.draft"):
            shutil.rmtree(left)
        self.draft_path(step).mkdir()

    def next_number(self) -> int:
        """The number of a new save."""
        return 1 + max(
            (manifest.number for manifest in scan_checkpoints(self._folder)[0].values()), default=0
        )

    def publish(self, manifest: Manifest, *, best: bool) -> None:
        """Put what was written in place; then the oldest go."""
        draft, path = self.draft_path(manifest.step), self.checkpoint_path(manifest.step)
        write_manifest(draft, manifest)
        fsync_path(draft)
        replaced = self._displace(path)
        draft.replace(path)
        if replaced is not None:
            shutil.rmtree(replaced)
        for name in [LATEST, BEST] if best else [LATEST]:
            self._link(name, path)
        fsync_path(self._folder)
        self._remove_old(path)

    def discard(self, step: int) -> None:
        """Give up what was begun."""
        shutil.rmtree(self.draft_path(step), ignore_errors=True)

    def quarantine(self, path: Path) -> None:
        """Rename what is damaged, or no checkpoint, so that it neither counts nor is removed."""
        path.replace(path.with_name(f"{path.name}.damaged.{path.stat().st_mtime_ns}"))

    def _displace(self, path: Path) -> Path | None:
        """Where a run that went back saves a step again: the draft that its old checkpoint has become. What is no checkpoint
        is set aside.
        """
        if not path.exists():
            return None
        if not (path / MANIFEST).exists():
            self.quarantine(path)
            return None
        return self._move_to_draft(path)

    def _link(self, name: str, path: Path) -> None:
        link = self._folder / f".{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        os.replace(link, self._folder / name)

    def _remove_old(self, written: Path) -> None:
        """All but the newest by the number of their save, whatever the clock says, and what a link leads to."""
        linked = {(self._folder / name).resolve() for name in (LATEST, BEST)}
        for old in list(scan_checkpoints(self._folder)[0])[self._keep :]:
            if old != written and old.resolve() not in linked:
                self._remove(old)

    def _remove(self, path: Path) -> None:
        """At once, as far as others see: a process killed meanwhile leaves a draft, not half a checkpoint."""
        shutil.rmtree(self._move_to_draft(path))

    def _move_to_draft(self, path: Path) -> Path:
        return path.replace(self._folder / f".{path.name}.removed.draft")
