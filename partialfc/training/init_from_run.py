"""Initialization of class centers from another run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.config import CenterInitConfig
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.head.kernels.torch_centers import CENTERS
from partialfc.inference.stored_centers import read_centers
from partialfc.inference.weights import read_weights, resolve_checkpoint
from partialfc.runtime import checkpoint

_NAME = f"head.{CENTERS}"  # in a checkpoint
_ROWS = 1 << 16  # rows of the other run per read
# Names of class centers in third-party heads: columns (ElasticFace) or rows (a linear layer).
_AS_COLUMNS, _AS_ROWS = "kernel", "weight"
NEW_IDENTITY = -1


def load_known_centers(head: PartialFC, config: CenterInitConfig) -> None:
    """Copy the known centers of this rank from another run; the others stay random.

    Their optimizer state is reset.

    Raises:
        InputError: If there are no centers, their shape differs, or the label map does not match.
    """
    if config.source is None:
        return
    centers, owned = head.centers.tensors[CENTERS], head.centers.local_classes
    source, labels = _open_known(config, config.source, head.num_classes, centers.shape[1])
    labels = labels[owned.start : owned.stop]
    for first in range(0, source.num_centers, _ROWS):
        rows = np.flatnonzero((labels >= first) & (labels < first + _ROWS))
        if len(rows):
            block = source.rows(first, min(first + _ROWS, source.num_centers))
            centers[torch.from_numpy(rows)] = block[torch.from_numpy(labels[rows] - first)].to(centers)


def check_known_centers(config: CenterInitConfig, num_classes: int, embedding_size: int) -> None:
    """Check that the centers of the other run can be copied, without reading them.

    Raises:
        InputError: In the cases of `load_known_centers`.
    """
    if config.source is not None:
        _open_known(config, config.source, num_classes, embedding_size)


def new_identity_mask(config: CenterInitConfig, num_classes: int) -> NDArray[np.bool_]:
    """Return a mask `[C]` of the identities that the other run does not know.

    Raises:
        InputError: In the cases of `load_known_centers`.
    """
    if config.source is None:
        return np.ones(num_classes, bool)
    return _read_label_map(config, num_classes, _open_source(Path(config.source)).num_centers) == NEW_IDENTITY


def _open_known(
    config: CenterInitConfig, path: str, num_classes: int, embedding_size: int
) -> tuple["_CenterSource", NDArray[np.int64]]:
    """Return the centers of the other run, and the label `[C]` there of each identity."""
    source = _open_source(Path(path))
    if source.embedding_size != embedding_size:
        raise InputError(
            f"init.centers: {path} has embedding size {source.embedding_size}; expected {embedding_size}"
        )
    return source, _read_label_map(config, num_classes, source.num_centers)


class _CenterSource(Protocol):
    """Class centers of another run."""

    @property
    def num_centers(self) -> int:
        """Number of centers."""

    @property
    def embedding_size(self) -> int:
        """Embedding size."""

    def rows(self, first: int, end: int) -> Tensor:
        """Return the centers [first, end)."""


@dataclass(frozen=True)
class _CheckpointCenters:
    """Centers of a checkpoint, read lazily."""

    path: Path
    num_centers: int
    embedding_size: int

    def rows(self, first: int, end: int) -> Tensor:
        return read_centers(self.path, first, end)


@dataclass(frozen=True)
class _FileCenters:
    """Centers of a file of weights, in memory."""

    centers: Tensor  # `[C, D]`

    @property
    def num_centers(self) -> int:
        return self.centers.shape[0]

    @property
    def embedding_size(self) -> int:
        return self.centers.shape[1]

    def rows(self, first: int, end: int) -> Tensor:
        return self.centers[first:end]


def _open_source(path: Path) -> _CenterSource:
    """Open a run, a checkpoint, or a file with the weights of a head.

    Returns:
        The centers.

    Raises:
        InputError: If it contains no centers.
    """
    if path.is_file():
        tensors = read_weights(path)
        for name, transposed in ((_AS_COLUMNS, True), (_AS_ROWS, False)):
            if name in tensors and tensors[name].dim() == 2:
                return _FileCenters(tensors[name].T if transposed else tensors[name])
        found = ", ".join(f"{name} {tuple(it.shape)}" for name, it in list(tensors.items())[:3])
        raise InputError(
            f"init.centers: {path} has {found}; expected {_AS_COLUMNS} [D, C] or {_AS_ROWS} [C, D]"
        )
    path = resolve_checkpoint(path)
    stored = checkpoint.read_manifest(path).tensors.get(_NAME)
    if stored is None:
        raise InputError(f"init.centers: {path} contains no centers")
    return _CheckpointCenters(path, stored.shape[0], stored.shape[1])


def _read_label_map(config: CenterInitConfig, num_classes: int, num_known: int) -> NDArray[np.int64]:
    """Return the label `[C]` of each identity in the other run, or NEW."""
    if config.map is None:
        if num_known != num_classes:
            raise InputError(
                f"init.centers: {config.source} has {num_known} identities, the pack has {num_classes}; expected init.centers.map"
            )
        return np.arange(num_classes)
    path = Path(config.map)
    labels = [
        _parse_label(line.partition("\t")[0].strip(), f"{path}: line {place}", num_known)  # a name may follow
        for place, line in enumerate(_lines(path), 1)
    ]
    if len(labels) != num_classes:
        raise InputError(
            f"{path}: {len(labels)} lines; expected one per identity of the pack, {num_classes} identities"
        )
    return np.array(labels, np.int64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text") from None


def _parse_label(text: str, location: str, num_known: int) -> int:
    if text == "new":
        return NEW_IDENTITY
    if not text.isdecimal() or int(text) >= num_known:
        raise InputError(
            f"{location}: {text!r}; expected a label of the other run, 0 to {num_known - 1}, or new"
        )
    return int(text)
