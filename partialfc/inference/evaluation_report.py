"""Report of an evaluation as JSON: scores, model, sets, and versions."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from partialfc.errors import InputError
from partialfc.evaluation.sets import EvaluationSet, Scores
from partialfc.inference.recognizer import WEIGHTS_FILE, Recognizer
from partialfc.inference.weights import resolve_checkpoint
from partialfc.runtime import checkpoint
from partialfc.runtime.files import atomic_write
from partialfc.runtime.versions import collect_versions, describe_device, git_revision

_FORMAT = 1  # version of the file format


class RunRecord(Struct, frozen=True):
    """Training run of a model."""

    step: int
    images: int
    identities: int
    pack: str  # fingerprint of the pack
    recipe: dict[str, Any]  # all settings


class ModelRecord(Struct, frozen=True):
    """Evaluated model."""

    path: str
    sha256: str  # of the file; for a checkpoint, of its run.json, which contains the digests of its tensors
    run: RunRecord | None  # None: weights without a run


class SetRecord(Struct, frozen=True):
    """Evaluation set and its scores."""

    path: str
    sha256: str | None  # None: a folder
    images: int
    scores: Scores


class EvaluationReport(Struct, frozen=True):
    """Contents of the report."""

    format: int
    revision: str  # git revision of this program
    environment: dict[str, str]  # versions and device
    model: ModelRecord
    sets: dict[str, SetRecord]  # by name


def require_parent_folder(path: Path) -> None:
    """Raise InputError if the parent folder of `path` does not exist."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")


def write_evaluation_report(
    path: Path,
    model: Path,
    recognizer: Recognizer,
    sets: Iterable[tuple[Path, EvaluationSet]],
    scores: Mapping[str, Scores],
) -> None:
    """Write the scores of `sets`, each with its path, as an EvaluationReport.

    `model` is the source of the recognizer.

    Raises:
        OSError: If the file cannot be written.
    """
    found = EvaluationReport(
        format=_FORMAT,
        revision=git_revision(),
        environment=collect_versions(recognizer.device) | {"device": describe_device(recognizer.device)},
        model=_model_record(recognizer, model),
        sets={
            it.name: SetRecord(
                str(place), None if place.is_dir() else _sha256(place), len(it), dict(scores[it.name])
            )
            for place, it in sets
        },
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


def _model_record(recognizer: Recognizer, model: Path) -> ModelRecord:
    file = resolve_checkpoint(model)
    run = None
    if known := recognizer.provenance:
        run = RunRecord(
            step=checkpoint.read_manifest(file).step,
            images=known.num_samples,
            identities=known.num_classes,
            pack=known.pack,
            recipe=msgspec.to_builtins(known.config),
        )
        file = file / checkpoint.MANIFEST
    elif file.is_dir():
        file = file / WEIGHTS_FILE
    return ModelRecord(str(model), _sha256(file), run)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
