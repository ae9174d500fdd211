"""Class centres that a run begins with: of the identities that another run knows, those of that run."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from partialfc.config import InitialCenters
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.head.active_rows import CENTERS
from partialfc.inference.weights import newest
from partialfc.runtime import checkpoint

_NAME = f"head.{CENTERS}"  # in a checkpoint
_ROWS = 1 << 16  # of the other run that are read at once
NEW = -1


def take_known(head: PartialFC, settings: InitialCenters) -> None:
    """Put the centres of a run in the place of this rank's, for the identities that it knows; the others stay as they were
    drawn. What the optimizer keeps of them begins anew.

    InputError where there is no such run, its centres are of another shape, or the file of labels does not fit.
    """
    path = newest(Path(settings.source))
    stored = checkpoint.read_manifest(path).tensors.get(_NAME)
    centers, owned = head.centers.tensors[CENTERS], head.centers.owned
    if stored is None or stored.shape[1] != centers.shape[1]:
        found = "none" if stored is None else f"of {stored.shape[1]} components"
        raise InputError(f"init.centers: those of {path} are {found}; wanted {centers.shape[1]}")
    known = stored.shape[0]
    labels = _labels(settings, head.num_classes, known)[owned.start : owned.stop]
    for first in range(0, known, _ROWS):
        rows = np.flatnonzero((labels >= first) & (labels < first + _ROWS))
        if len(rows):
            block = checkpoint.read_rows(path, _NAME, first, min(first + _ROWS, known))
            centers[torch.from_numpy(rows)] = block[torch.from_numpy(labels[rows] - first)].to(centers)


def _labels(settings: InitialCenters, classes: int, known: int) -> NDArray[np.int64]:
    """[C] the label in the other run of each identity; NEW: it has none."""
    if settings.map is None:
        if known != classes:
            raise InputError(
                f"init.centers: {settings.source} knows {known} identities, the pack has {classes}; wanted init.centers.map"
            )
        return np.arange(classes)
    path = Path(settings.map)
    labels = [
        _label(line.strip(), f"{path}: line {place}", known) for place, line in enumerate(_lines(path), 1)
    ]
    if len(labels) != classes:
        raise InputError(
            f"{path}: {len(labels)} lines; wanted one for each of the pack's {classes} identities"
        )
    return np.array(labels, np.int64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text") from None


def _label(text: str, place: str, known: int) -> int:
    if text == "new":
        return NEW
    if not text.isdecimal() or int(text) >= known:
        raise InputError(f"{place}: {text!r}; wanted a label of the other run, 0 to {known - 1}, or new")
    return int(text)
