"""The loop of a training run, and one step of it. Everything with state lives in Run."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from partialfc import recipe
from partialfc.config import Config, Duration
from partialfc.data import images
from partialfc.data.loader import Batch
from partialfc.head import HeadStep
from partialfc.monitoring.report import Report
from partialfc.monitoring.steps import Metrics, RunProgress
from partialfc.runtime import comm
from partialfc.runtime.comm import Ranks
from partialfc.runtime.files import atomic_write
from partialfc.runtime.usage import section
from partialfc.training import schedule
from partialfc.training.run import Run, build_run


def train(config: Config, ranks: Ranks) -> Run:
    """Train up to `train.length`, going on from the checkpoint that `checkpoint.resume` means."""
    with comm.fail_on_all_ranks(ranks):
        run = build_run(config, ranks)
        resumed = run.checkpoints.to_resume(config.checkpoint.resume)
    if resumed is not None:
        run.restore(resumed)
    with comm.fail_on_all_ranks(ranks):
        report = _report(run)
    with report:
        _introduce(run, report, resumed)
        if run.step == 0:
            with report.untimed():
                report.evaluated(run.step, run.sets, run.embed_sets())
        start = run.step
        for batch, step in _prepared(run):
            if run.step == start:
                with report.untimed():
                    faces = images.sheet(batch.images.cpu().numpy(), 8, 8)
                    report.picture("faces/as_trained", faces, run.step + 1)
            report.step(run.step + 1, train_step(run, batch, step))
            run.step += 1
            with report.untimed():
                if _due(run, config.evaluation.every):
                    report.evaluated(run.step, run.sets, run.embed_sets())
                if _due(run, config.checkpoint.every):
                    run.save(report.seconds)
        report.summary(run.step)
    return run


def _prepared(run: Run) -> Iterator[tuple[Batch, HeadStep]]:
    """The batches of the run, each with the head's step, which is prepared while the step before is taken: so rows
    that live outside the device are there in time.
    """
    ahead, batches = None, run.loader.batches(run.step, run.last_step)
    for number in range(run.step, run.last_step):
        with section("data"):
            batch = next(batches)
            step = run.head.prepare(batch.labels, number)  # all B labels, on the host
        if ahead is not None:
            yield ahead
        ahead = batch, step
    if ahead is not None:
        yield ahead


def train_step(run: Run, batch: Batch, step: HeadStep) -> Metrics:
    """One optimizer step over one global batch, with whose labels `step` was prepared; queues work and never waits
    for the device.
    """
    config, number = run.config, run.step
    rate = partial(
        schedule.rate, config.schedule, number, total=run.last_step, steps_per_epoch=run.steps_per_epoch
    )
    lr, rows_lr = rate(peak=config.optim.lr), rate(peak=config.rows_optim.lr)
    statistics, loss_scale = run.statistics.kept(), run.optimizer.loss_scale.value.clone()
    with section("backbone"):
        embeddings = run.micro_batches.forward(batch.images, number)  # [b, D]: this rank's images
    with section("head"):
        loss = run.head(embeddings, step)  # over all B images, the same on every rank
        (loss * loss_scale).backward()
    assert embeddings.grad is not None
    with section("backbone"):
        run.micro_batches.backward(batch.images, number, embeddings.grad)
    with section("optimizer"):
        norm, finite = run.optimizer.step(lr, loss)  # all ranks skip, or none
        run.statistics.restore_unless(finite, statistics)
        if run.average:
            run.average.update(number, finite)
    diagnostics = run.observe(step) if _diagnostics_due(run) else None
    with section("head"):
        run.head.update(step, rows_lr, finite, loss_scale)
    return Metrics(
        loss=loss.detach(),
        gradient_norm=norm,
        finite=finite,
        lr=lr,
        waited=batch.waited,
        replaced=batch.replaced,
        diagnostics=diagnostics,
    )


def _diagnostics_due(run: Run) -> bool:
    """Whether the step under way is looked at more closely."""
    done = run.step + 1
    return done % run.config.report.histograms == 0 or done == run.last_step


def _due(run: Run, every: Duration) -> bool:
    return schedule.due(run.step, every=schedule.in_steps(every, run.steps_per_epoch), last=run.last_step)


def _report(run: Run) -> Report:
    output = Path(run.config.output)
    if run.ranks.first:
        output.mkdir(parents=True, exist_ok=True)
        with atomic_write(output / "recipe.yaml") as temporary:
            temporary.write_text(recipe.dump(run.config), encoding="utf-8")
    progress = RunProgress(run.step, run.last_step, run.steps_per_epoch, run.config.train.batch, run.seconds)
    return Report(
        output, progress, every=run.config.report.every, device=run.ranks.device, enabled=run.ranks.first
    )


def _introduce(run: Run, report: Report, resumed: Path | None) -> None:
    parameters = sum(parameter.numel() for parameter in run.backbone.parameters())
    report.say(
        f"{run.order.num_samples} images of {run.head.num_classes} identities, batch {run.config.train.batch} on "
        f"{run.ranks.size} rank(s) of {', '.join(comm.hosts(run.ranks))}, {run.ranks.device.type}, {torch.get_num_threads()} thread(s) each; "
        f"backbone with {parameters / 1e6:.2f} M parameters"
    )
    if resumed is not None:
        report.say(f"going on from {resumed}, at step {run.step} of {run.last_step}")
