"""Folder of a run's checkpoints: listing, publication and removal. Only one process at a time may use it.

A checkpoint is the folder `step_00001000`: written under another name, synced, renamed. `latest` links to the
latest checkpoint and `best` to the one with the best score. Checkpoints that failed verification are renamed
to `step_*.damaged.*` and never touched again.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from partialfc.errors import InputError
from partialfc.runtime.checkpoint.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import fsync_path

LATEST, BEST = "latest", "best"
_NAME = re.compile(r"step_\d+")


def scan_checkpoints(
    folder: Path, on_unreadable: Callable[[str], None] | None = None
) -> tuple[dict[Path, Manifest], list[str]]:
    """Return the checkpoints with a valid run.json, latest save first, and one line for each invalid one.

    Args:
        folder: Folder of the checkpoints.
        on_unreadable: Called with the problem of each that cannot be read, instead of raising it.

    Raises:
        OSError: If one cannot be read.
    """
    found, problems = {}, []
    for path in sorted(folder.glob("step_*")):
        if _NAME.fullmatch(path.name):
            try:
                found[path] = read_manifest(path)
            except InputError as error:
                problems.append(str(error))
            except OSError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(format_error(error))
    by_age = sorted(found, key=lambda path: found[path].number, reverse=True)
    return {path: found[path] for path in by_age}, problems


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the latest checkpoint with a valid run.json, without verifying its tensors, or None.

    Raises:
        InputError: If no checkpoint is readable.
    """
    found, problems = scan_checkpoints(folder)
    if problems and not found:
        raise InputError("; ".join(problems))
    return next(iter(found), None)


class CheckpointFolder:
    """Folder of checkpoints.

    Args:
        path: Folder.
        keep: Number of latest checkpoints to keep, in addition to the best one.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder.absolute(), keep
        self._warnings: dict[str, bool] = {}  # whether each was returned by take_warnings

    def take_warnings(self) -> list[str]:
        """Return what could not be removed or linked since the last call; each only once."""
        new = [text for text, returned in self._warnings.items() if not returned]
        self._warnings |= dict.fromkeys(new, True)
        return new

    def checkpoint_path(self, step: int) -> Path:
        """Return the path of a step's checkpoint."""
        return self._folder / f"step_{step:08d}"

    def draft_path(self, step: int) -> Path:
        """Return the path that a step's checkpoint is written to before it is published."""
        return self._folder / f".{self.checkpoint_path(step).name}.draft"

    def begin(self, step: int) -> None:
        """Create the folder to write into, and remove the drafts of killed processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        fsync_path(self._folder.parent)
        for left in self._folder.glob(".step_*.draft"):
            self._delete(left)
        self.draft_path(step).mkdir()

    def next_number(self) -> int:
        """Return the number of a new save."""
        found, _ = scan_checkpoints(self._folder, self._warn)
        return 1 + max((manifest.number for manifest in found.values()), default=0)

    def publish(self, manifest: Manifest, *, best: bool) -> None:
        """Publish a draft and remove the oldest checkpoints."""
        draft, path = self.draft_path(manifest.step), self.checkpoint_path(manifest.step)
        write_manifest(draft, manifest)
        fsync_path(draft)
        replaced = self._displace(path)
        draft.replace(path)
        if replaced is not None:
            self._delete(replaced)
        for name in [LATEST, BEST] if best else [LATEST]:
            self._link(name, path)
        fsync_path(self._folder)
        self._remove_old(path)

    def discard(self, step: int) -> None:
        """Remove a draft."""
        shutil.rmtree(self.draft_path(step), ignore_errors=True)

    def quarantine(self, path: Path) -> None:
        """Rename a damaged or foreign folder, so that it neither counts nor is removed."""
        path.replace(path.with_name(f"{path.name}.damaged.{path.stat().st_mtime_ns}"))

    def _displace(self, path: Path) -> Path | None:
        """Move an older checkpoint of the same step out of the way; it becomes a draft.

        This happens when a run that was reset saves a step again. Foreign folders are quarantined.

        Returns:
            Path of the draft, or None.
        """
        if not path.exists():
            return None
        if not (path / MANIFEST).exists():
            self.quarantine(path)
            return None
        return self._move_to_draft(path)

    def _link(self, name: str, path: Path) -> None:
        """Link to a checkpoint; a copy that a copied run has instead of the link is renamed."""
        place, link = self._folder / name, self._folder / f".{name}"
        if place.is_dir() and not place.is_symlink():
            aside = place.replace(place.with_name(f"{name}.copied.{place.stat().st_mtime_ns}"))
            self._warn(f"{place}: expected a link, found a folder; renamed to {aside.name}")
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(path.name)
        except OSError as error:  # a disk without symbolic links
            self._warn(f"{place}: {error.strerror}; it does not link to {path.name}")
            return
        os.replace(link, place)

    def _remove_old(self, written: Path) -> None:
        """Remove all checkpoints except the latest, by save number, and those that a link refers to."""
        linked = {(self._folder / name).resolve() for name in (LATEST, BEST)}
        for old in list(scan_checkpoints(self._folder, self._warn)[0])[self._keep :]:
            if old != written and old.resolve() not in linked:
                self._remove(old)

    def _remove(self, path: Path) -> None:
        """Remove a checkpoint atomically: a process killed halfway leaves a draft, never half a checkpoint."""
        try:
            draft = self._move_to_draft(path)
        except OSError as error:
            self._warn(f"not removed: {path}: {error.strerror}")
        else:
            self._delete(draft)

    def _delete(self, path: Path) -> None:
        """Remove a folder, or a link without its target. If that fails, the run continues."""
        try:
            if path.is_symlink():
                target = path.resolve()
                path.unlink()
                self._warn(f"not removed: {target}; the link to it was")
            else:
                shutil.rmtree(path)
        except OSError as error:
            self._warn(f"not removed: {path}: {error.strerror}")

    def _warn(self, text: str) -> None:
        self._warnings.setdefault(text, False)

    def _move_to_draft(self, path: Path) -> Path:
        return path.replace(self._folder / f".{path.name}.removed.draft")
