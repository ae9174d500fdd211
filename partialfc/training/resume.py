"""Start or resume of a run: built from its recipe and compared with the checkpoint's settings."""

from pathlib import Path

import msgspec

from partialfc.config import Config
from partialfc.config.provenance import Provenance, parse_provenance, require_unchanged
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.data.sampler import check_world_size
from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import RESUME_KEYWORDS, CheckpointManager, VerifiedCheckpoint
from partialfc.runtime.comm import DistContext
from partialfc.runtime.files import SUMMARY_FILE
from partialfc.training.init_from_means import init_centers_from_means
from partialfc.training.run import Run, build_run


def find_resume_point(checkpoints: CheckpointManager, resume: str) -> VerifiedCheckpoint | None:
    """Return the checkpoint that `checkpoint.resume` selects.

    A path selects the start of a new run. If that run has saved checkpoints since, its latest is selected, so
    that the same command resumes it.

    Raises:
        CollectiveInputError: In the cases of `CheckpointManager.find_resume_point`.
    """
    if resume not in RESUME_KEYWORDS and checkpoints.broadcast_latest_metadata().get("origin") == resume:
        resume = "auto"
    return checkpoints.find_resume_point(resume)


def start_or_resume(
    config: Config,
    dist_ctx: DistContext,
    checkpoints: CheckpointManager,
    checkpoint: VerifiedCheckpoint | None,
) -> tuple[Run, Provenance]:
    """Return the run, at the step of the checkpoint if there is one, and the provenance for its own checkpoints.

    Raises:
        CollectiveInputError: If recipe, data and ranks are inconsistent, or if the checkpoint was made
            with different settings.
    """
    with comm.raise_on_all_ranks(dist_ctx):
        check_world_size(config, dist_ctx.world_size)
        old = (
            parse_provenance(checkpoint.manifest.about, f"checkpoint {checkpoint.path}")
            if checkpoint
            else None
        )
        config = _resolve_micro_batch(config, old, dist_ctx)
        run = build_run(config, dist_ctx, init_centers=checkpoint is None)
        pack = pack_fingerprint(Path(config.data.path)) if dist_ctx.is_main else ""
        if dist_ctx.is_main and run.loader.teacher is not None:
            run.loader.teacher.check_pack(pack, Path(config.data.path))
    pack = comm.broadcast_object(pack, dist_ctx.host_group)
    resume = config.checkpoint.resume
    origin = resume if resume not in RESUME_KEYWORDS else (old.origin if old else None)
    now = Provenance(config, run.head.num_classes, run.sample_order.num_samples, pack, origin=origin)
    if checkpoint is None or old is None:
        if config.init.uses_mean_init:
            init_centers_from_means(run)
        return run, now
    with comm.raise_on_all_ranks(dist_ctx):
        changed = _check_changes(run, checkpoint, old, now)
    initialized = run.restore(checkpoints, checkpoint, changed=bool(changed))
    changed += [f"{name}: not in the checkpoint; initialized" for name in _summarize_names(initialized)]
    history = [*old.history, (checkpoint.manifest.step, changed)] if changed else old.history
    return run, msgspec.structs.replace(now, history=history)


def check_if_finished(output: Path, run: Run) -> bool:
    """Return True on all ranks if the resumed run has already finished."""
    has_finished = run.step == run.total_steps and (output / SUMMARY_FILE).exists()
    return comm.broadcast_object(has_finished, run.dist_ctx.host_group)


def _resolve_micro_batch(config: Config, old: Provenance | None, dist_ctx: DistContext) -> Config:
    """Resolve the micro-batch size, on which normalization depends, independently of the number of ranks.

    If the recipe does not set it, the value at the start of the run is used.

    Returns:
        Config with a micro-batch size.
    """
    size = config.train.micro_batch_size or (old and old.config.train.micro_batch_size)
    train = msgspec.structs.replace(
        config.train, micro_batch_size=size or config.train.global_batch_size // dist_ctx.world_size
    )
    return msgspec.structs.replace(config, train=train)


def _check_changes(run: Run, checkpoint: VerifiedCheckpoint, old: Provenance, new: Provenance) -> list[str]:
    step = checkpoint.manifest.step
    allowed = run.config.checkpoint.on_config_change == "allow"
    changed = require_unchanged(checkpoint.path, old, new, allowed=allowed)
    if step > run.total_steps:
        raise InputError(
            f"train.length: {run.total_steps} steps, but checkpoint {checkpoint.path} has taken {step}; expected as many or more"
        )
    return changed


def _summarize_names(names: list[str]) -> list[str]:
    """Return names of tensors: each one of the head, one for all of a network or its optimizer state."""
    return list(dict.fromkeys(name if name.startswith("head.") else name.partition(".")[0] for name in names))
