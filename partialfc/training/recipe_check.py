"""Check of a recipe before a run: opens every file that the run would open, on one process and without training."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from partialfc.backbones import build_backbone, inference_config
from partialfc.config import Config
from partialfc.config.provenance import Provenance, parse_provenance, require_unchanged
from partialfc.data import RecordDataset
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.errors import InputError
from partialfc.evaluation.loading import evaluation_set_paths, load_sets
from partialfc.head.losses import build_loss
from partialfc.inference.weights import check_weights, read_weights
from partialfc.runtime.checkpoint import RESUME_KEYWORDS, newest_checkpoint, read_manifest
from partialfc.training.init_from_run import check_known_centers
from partialfc.training.run import load_teacher


def open_run_files(config: Config) -> Iterator[str]:
    """Open all files of a run.

    Yields:
        A line for each, and one with what was not read.

    Raises:
        InputError: If the run would refuse one.
    """
    build_loss(config.loss, steps_per_epoch=1)
    dataset = None
    folder = Path(config.data.path)
    if config.data.synthetic is None or (folder / "property").exists():
        dataset = RecordDataset(folder, image_size=config.backbone.input_size, reader=config.data.reader)
        yield f"{folder}: {_describe_pack(dataset)}"
    else:
        yield f"{folder}: {config.data.synthetic.identities} synthetic identities will be generated"
    paths = evaluation_set_paths(config)
    sets = load_sets(paths, skip_unusable=config.evaluation.skip_unusable)
    for path, found in zip(paths, sets, strict=True):
        yield f"{path}: evaluation set {found.name}, {len(found)} images"
    _check_backbone(config)
    if config.init.backbone is not None:
        yield f"{config.init.backbone}: weights fit"
    if (teacher := load_teacher(config)) is not None:
        if dataset is not None:
            teacher.check_pack(pack_fingerprint(folder), folder)
        yield f"{config.distillation.teacher_embeddings}: teacher embeddings of size {teacher.embedding_size}"
    checkpoint = _find_checkpoint(config)
    if checkpoint is None and config.init.centers is not None and dataset is not None:
        check_known_centers(config.init.centers, dataset.num_classes, config.backbone.embedding_size)
        yield f"init.centers: centers of {config.init.centers.source or 'new identities only'} fit"
    if checkpoint is not None and dataset is not None:
        yield _check_checkpoint(checkpoint, config, dataset)
    yield f"not read: images (partialfc check {folder}){'' if checkpoint is None else ', tensors of the checkpoint'}"


def _describe_pack(dataset: RecordDataset) -> str:
    present = dataset.classes_with_images() or dataset.num_classes
    empty = dataset.num_classes - present
    return f"{len(dataset)} images of {present} identities" + (
        f"; {empty} classes have no images" if empty else ""
    )


def _check_backbone(config: Config) -> None:
    backbone = build_backbone(
        config.backbone if config.init.backbone is None else inference_config(config.backbone)
    )
    if config.init.backbone is not None:
        source = Path(config.init.backbone)
        check_weights(backbone, read_weights(source), source)


def _find_checkpoint(config: Config) -> Path | None:
    """Return the checkpoint that the run would resume from, without verifying its tensors."""
    own, resume = newest_checkpoint(Path(config.output, "checkpoints")), config.checkpoint.resume
    if resume == "never" and own is not None:
        raise InputError(f"checkpoint.resume: never, but {own} exists; choose another `output`")
    if resume in RESUME_KEYWORDS or (own is not None and read_manifest(own).about.get("origin") == resume):
        return own
    return Path(resume)


def _check_checkpoint(checkpoint: Path, config: Config, dataset: RecordDataset) -> str:
    manifest = read_manifest(checkpoint)
    old = parse_provenance(manifest.about, f"checkpoint {checkpoint}")
    size = config.train.micro_batch_size or old.config.train.micro_batch_size
    config = msgspec.structs.replace(
        config, train=msgspec.structs.replace(config.train, micro_batch_size=size)
    )
    pack = pack_fingerprint(Path(config.data.path))
    new = Provenance(config, dataset.num_classes, len(dataset), pack)
    allowed = config.checkpoint.on_config_change == "allow"
    changed = require_unchanged(checkpoint, old, new, allowed=allowed)
    return f"{checkpoint}: the run would resume at step {manifest.step}" + "".join(
        f"; {it}" for it in changed
    )
