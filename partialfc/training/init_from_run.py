"""Class centres that a run begins with: of the identities that others know, as these left them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.config import InitialCenters
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.head.kernels.torch_centers import CENTERS
from partialfc.inference.stored_centers import read_centers
from partialfc.inference.weights import newest, read_weights
from partialfc.runtime import checkpoint

_NAME = f"head.{CENTERS}"  # in a checkpoint
_ROWS = 1 << 16  # of the other run that are read at once
# What heads of others call their centres: ElasticFace's, whose columns they are, and a linear layer.
_AS_COLUMNS, _AS_ROWS = "kernel", "weight"
NEW = -1


def take_known(head: PartialFC, settings: InitialCenters) -> None:
    """Put the centres that are known in the place of this rank's; the others stay as they were drawn. What the optimizer keeps
    of them begins anew.

    InputError where there are none, they are of another shape, or the file of labels does not fit.
    """
    if settings.source is None:
        return
    source = _opened(Path(settings.source))
    centers, owned = head.centers.tensors[CENTERS], head.centers.local_classes
    if source.width != centers.shape[1]:
        raise InputError(
            f"init.centers: those of {settings.source} are of {source.width} components; wanted {centers.shape[1]}"
        )
    labels = _labels(settings, head.num_classes, source.count)[owned.start : owned.stop]
    for first in range(0, source.count, _ROWS):
        rows = np.flatnonzero((labels >= first) & (labels < first + _ROWS))
        if len(rows):
            block = source.rows(first, min(first + _ROWS, source.count))
            centers[torch.from_numpy(rows)] = block[torch.from_numpy(labels[rows] - first)].to(centers)


def new_identities(settings: InitialCenters, classes: int) -> NDArray[np.bool_]:
    """[C] whether an identity's centre is known to nobody. InputError as of `take_known`."""
    if settings.source is None:
        return np.ones(classes, bool)
    return _labels(settings, classes, _opened(Path(settings.source)).count) == NEW


class _Source(Protocol):
    """Centres of others."""

    @property
    def count(self) -> int:
        """How many."""

    @property
    def width(self) -> int:
        """Components of each."""

    def rows(self, first: int, end: int) -> Tensor:
        """Centres `first` to `end` - 1."""


@dataclass(frozen=True)
class _OfRun:
    """Those of a checkpoint: read where they are asked for."""

    path: Path
    count: int
    width: int

    def rows(self, first: int, end: int) -> Tensor:
        return read_centers(self.path, first, end)


@dataclass(frozen=True)
class _OfFile:
    """Those of a file of weights: in memory."""

    centers: Tensor  # [count, width]

    @property
    def count(self) -> int:
        return self.centers.shape[0]

    @property
    def width(self) -> int:
        return self.centers.shape[1]

    def rows(self, first: int, end: int) -> Tensor:
        return self.centers[first:end]


def _opened(path: Path) -> _Source:
    """A run, a checkpoint of one, or a file of a head's weights. InputError where there are no centres."""
    if path.is_file():
        tensors = read_weights(path)
        for name, transposed in ((_AS_COLUMNS, True), (_AS_ROWS, False)):
            if name in tensors and tensors[name].dim() == 2:
                return _OfFile(tensors[name].T if transposed else tensors[name])
        found = ", ".join(f"{name} {tuple(it.shape)}" for name, it in list(tensors.items())[:3])
        raise InputError(
            f"init.centers: {path} has {found}; wanted {_AS_COLUMNS} [D, C] or {_AS_ROWS} [C, D]"
        )
    path = newest(path)
    stored = checkpoint.read_manifest(path).tensors.get(_NAME)
    if stored is None:
        raise InputError(f"init.centers: {path} has none")
    return _OfRun(path, stored.shape[0], stored.shape[1])


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
        _label(line.partition("\t")[0].strip(), f"{path}: line {place}", known)  # a name may follow
        for place, line in enumerate(_lines(path), 1)
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
