"""The file of an evaluation's results: the scores, and of what network and sets they are, by which program."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from partialfc.errors import InputError
from partialfc.evaluation.sets import EvaluationSet, Scores
from partialfc.inference.recognizer import EXPORTED, Recognizer
from partialfc.inference.weights import newest
from partialfc.runtime import checkpoint
from partialfc.runtime.files import atomic_write
from partialfc.runtime.versions import described, revision, versions

_FORMAT = 1  # of the file: what a name means in it


class TrainedRun(Struct, frozen=True):
    """The run that a network is from."""

    step: int
    images: int
    identities: int
    pack: str  # its fingerprint
    recipe: dict[str, Any]  # every setting


class Evaluated(Struct, frozen=True):
    """The network."""

    path: str
    sha256: str  # of the file; of a checkpoint that of its run.json, which has the digests of its tensors
    run: TrainedRun | None  # None: weights without a run


class SetResult(Struct, frozen=True):
    """An evaluation set and what came of it."""

    path: str
    sha256: str | None  # None: a folder
    images: int
    scores: Scores


class Results(Struct, frozen=True):
    """All that the file says."""

    format: int
    revision: str  # of this program
    environment: dict[str, str]  # versions, and the device
    model: Evaluated
    sets: dict[str, SetResult]  # by name


def check_place(path: Path) -> None:
    """InputError where there is no folder for a file at `path`."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; wanted one that is there")


def write_results(
    path: Path,
    model: Path,
    recognizer: Recognizer,
    sets: Iterable[tuple[Path, EvaluationSet]],
    scores: Mapping[str, Scores],
) -> None:
    """Write what came of the `sets`, each with its path, to a file of JSON: Results. model: where the recognizer is from. OSError
    where it cannot be written.
    """
    found = Results(
        format=_FORMAT,
        revision=revision(),
        environment=versions(recognizer.device) | {"device": described(recognizer.device)},
        model=_evaluated(recognizer, model),
        sets={
            it.name: SetResult(
                str(place), None if place.is_dir() else _digest(place), len(it), dict(scores[it.name])
            )
            for place, it in sets
        },
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


def _evaluated(recognizer: Recognizer, model: Path) -> Evaluated:
    file = newest(model)
    run = None
    if known := recognizer.provenance:
        run = TrainedRun(
            step=checkpoint.read_manifest(file).step,
            images=known.num_samples,
            identities=known.num_classes,
            pack=known.pack,
            recipe=msgspec.to_builtins(known.config),
        )
        file = file / checkpoint.MANIFEST
    elif file.is_dir():
        file = file / EXPORTED
    return Evaluated(str(model), _digest(file), run)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
