"""A run that begins, or goes on from a checkpoint: built from its recipe, held against what the checkpoint was made with."""

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
    """The checkpoint that a recipe's `checkpoint.resume` means: a path where the run begins, but where it has saved since,
    the newest of its own, as the same command goes on. CollectiveInputError as of Checkpoints.to_resume.
    """
    if resume not in RESUME_KEYWORDS and checkpoints.latest_metadata().get("origin") == resume:
        resume = "auto"
    return checkpoints.find_resume_point(resume)


def start_or_resume(
    config: Config,
    dist_ctx: DistContext,
    checkpoints: CheckpointManager,
    checkpoint: VerifiedCheckpoint | None,
) -> tuple[Run, Provenance]:
    """The run, at the step of the checkpoint, if there is one, and what its own checkpoints are to say of it.

    CollectiveInputError where recipe, data and ranks do not fit, and where the checkpoint was made with other settings.
    """
    with comm.raise_on_all_ranks(dist_ctx):
        check_world_size(config, dist_ctx.world_size)
        before = (
            parse_provenance(checkpoint.manifest.about, f"checkpoint {checkpoint.path}")
            if checkpoint
            else None
        )
        config = _resolve_micro_batch(config, before, dist_ctx)
        run = build_run(config, dist_ctx, init_centers=checkpoint is None)
        pack = pack_fingerprint(Path(config.data.path)) if dist_ctx.is_main else ""
        if dist_ctx.is_main and run.loader.teacher is not None:
            run.loader.teacher.check_pack(pack, Path(config.data.path))
    pack = comm.broadcast_object(pack, dist_ctx.host_group)
    resume = config.checkpoint.resume
    origin = resume if resume not in RESUME_KEYWORDS else (before.origin if before else None)
    now = Provenance(config, run.head.num_classes, run.sample_order.num_samples, pack, origin=origin)
    if checkpoint is None or before is None:
        if config.init.uses_mean_init:
            init_centers_from_means(run)
        return run, now
    with comm.raise_on_all_ranks(dist_ctx):
        changed = _check_changes(run, checkpoint, before, now)
    begun = run.restore(checkpoints, checkpoint, changed=bool(changed))
    changed += [f"{name} begins here: the checkpoint has none" for name in _summarize_names(begun)]
    history = [*before.history, (checkpoint.manifest.step, changed)] if changed else before.history
    return run, msgspec.structs.replace(now, history=history)


def is_finished(output: Path, run: Run) -> bool:
    """Whether nothing is left to do of a run that goes on from a checkpoint; equal on all ranks."""
    done = run.step == run.total_steps and (output / SUMMARY_FILE).exists()
    return comm.broadcast_object(done, run.dist_ctx.host_group)


def _resolve_micro_batch(config: Config, old: Provenance | None, dist_ctx: DistContext) -> Config:
    """What is normalised together belongs to the run, at any number of ranks: where the recipe does not say, it is what
    it was when the run began.
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
            f"train.length: {run.total_steps} steps, but checkpoint {checkpoint.path} has taken {step}; wanted as many or more"
        )
    return changed


def _summarize_names(names: list[str]) -> list[str]:
    """Of tensors: those of the head each, of a network or its moments one for all."""
    return list(dict.fromkeys(name if name.startswith("head.") else name.partition(".")[0] for name in names))
