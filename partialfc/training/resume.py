"""A run that begins, or goes on from a checkpoint: built from its recipe, held against what the checkpoint was made with."""

from pathlib import Path

import msgspec

from partialfc.config import Config
from partialfc.config.provenance import Provenance, checked_changes, provenance_of
from partialfc.data.fingerprint import fingerprint
from partialfc.data.sampler import check_world_size
from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import WORDS, Checkpoints, Found
from partialfc.runtime.comm import Ranks
from partialfc.runtime.files import SUMMARY
from partialfc.training.init_from_means import take_means
from partialfc.training.run import Run, build_run


def to_resume(checkpoints: Checkpoints, resume: str) -> Found | None:
    """The checkpoint that a recipe's `checkpoint.resume` means: a path where the run begins, but where it has saved since,
    the newest of its own, as the same command goes on. CollectiveInputError as of Checkpoints.to_resume.
    """
    if resume not in WORDS and checkpoints.newest_about().get("origin") == resume:
        resume = "auto"
    return checkpoints.to_resume(resume)


def begun(
    config: Config, ranks: Ranks, checkpoints: Checkpoints, found: Found | None
) -> tuple[Run, Provenance]:
    """The run, at the step of the checkpoint, if there is one, and what its own checkpoints are to say of it.

    CollectiveInputError where recipe, data and ranks do not fit, and where the checkpoint was made with other settings.
    """
    with comm.fail_on_all_ranks(ranks):
        check_world_size(config, ranks.size)
        before = provenance_of(found.manifest.about, f"checkpoint {found.path}") if found else None
        config = _with_micro_batch(config, before, ranks)
        run = build_run(config, ranks, drawn=found is None)
        pack = fingerprint(Path(config.data.path)) if ranks.first else ""
        if ranks.first and run.loader.teacher is not None:
            run.loader.teacher.check_pack(pack, Path(config.data.path))
    pack = comm.of_first_rank(pack, ranks.host)
    resume = config.checkpoint.resume
    origin = resume if resume not in WORDS else (before.origin if before else None)
    now = Provenance(config, run.head.num_classes, run.order.num_samples, pack, origin=origin)
    if found is None or before is None:
        if config.init.means:
            take_means(run)
        return run, now
    with comm.fail_on_all_ranks(ranks):
        changed = _changed(run, found, before, now)
    begun = run.restore(checkpoints, found, changed=bool(changed))
    changed += [f"{name} begins here: the checkpoint has none" for name in _in_short(begun)]
    history = [*before.history, (found.manifest.step, changed)] if changed else before.history
    return run, msgspec.structs.replace(now, history=history)


def finished(output: Path, run: Run) -> bool:
    """Whether nothing is left to do of a run that goes on from a checkpoint; equal on all ranks."""
    done = run.step == run.last_step and (output / SUMMARY).exists()
    return comm.of_first_rank(done, run.ranks.host)


def _with_micro_batch(config: Config, before: Provenance | None, ranks: Ranks) -> Config:
    """What is normalised together belongs to the run, at any number of ranks: where the recipe does not say, it is what
    it was when the run began.
    """
    size = config.train.micro_batch_size or (before and before.config.train.micro_batch_size)
    train = msgspec.structs.replace(
        config.train, micro_batch_size=size or config.train.global_batch_size // ranks.size
    )
    return msgspec.structs.replace(config, train=train)


def _changed(run: Run, found: Found, before: Provenance, now: Provenance) -> list[str]:
    step = found.manifest.step
    allowed = run.config.checkpoint.on_config_change == "allow"
    changed = checked_changes(found.path, before, now, allowed=allowed)
    if step > run.last_step:
        raise InputError(
            f"train.length: {run.last_step} steps, but checkpoint {found.path} has taken {step}; wanted as many or more"
        )
    return changed


def _in_short(names: list[str]) -> list[str]:
    """Of tensors: those of the head each, of a network or its moments one for all."""
    return list(dict.fromkeys(name if name.startswith("head.") else name.partition(".")[0] for name in names))
