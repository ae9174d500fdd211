"""The loop of a training run, and one step of it. Everything with state lives in Run."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch

from partialfc.config import Config
from partialfc.config.durations import in_steps, seconds_of
from partialfc.config.provenance import Provenance, settings_of
from partialfc.config.scheduled import stages_at
from partialfc.data import images
from partialfc.data.loader import Batch, Notices
from partialfc.data.preview import some_identities
from partialfc.evaluation.embed import EvaluationStopped
from partialfc.evaluation.sets import Scores
from partialfc.head import HeadStep
from partialfc.monitoring.run_logger import Report
from partialfc.monitoring.step_metrics import Metrics, RunProgress
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import Checkpoints, Found
from partialfc.runtime.comm import CollectiveInputError, Ranks
from partialfc.runtime.files import SUMMARY, atomic_write
from partialfc.runtime.process import flight_recorder
from partialfc.runtime.process.run_lock import occupied
from partialfc.runtime.process.signals import StopRequest
from partialfc.runtime.process.watchdog import Watchdog, watching
from partialfc.runtime.timing import section
from partialfc.training import schedule
from partialfc.training.checkpoint_scheduler import Saving
from partialfc.training.distillation_loss import regression
from partialfc.training.health import Diverged, check_replicas, problem_of
from partialfc.training.resume import begun, finished, to_resume
from partialfc.training.run import Run


def train(config: Config, ranks: Ranks, stop: StopRequest | None = None) -> Run:
    """Train up to `train.length`, going on from the checkpoint that `checkpoint.resume` means, or up to the step in which
    `stop` is requested on any rank: then the run is saved, and `stopped`.

    Diverged where the loss is lost; CollectiveInputError on bad input, and where the last checkpoint cannot be written.
    """
    output = Path(config.output)
    with occupied(output, ranks):
        checkpoints = Checkpoints(output / "checkpoints", keep=config.checkpoint.keep, ranks=ranks)
        found = to_resume(checkpoints, config.checkpoint.resume)
        run, provenance = begun(config, ranks, checkpoints, found)
        if found is not None and finished(output, run):
            if ranks.first:
                print(f"{output}: finished at step {run.step}", flush=True)
            return run
        with comm.fail_on_all_ranks(ranks):
            report = _report(run, provenance)
        with report:
            report.recipe(provenance.in_words(), settings_of(run.config))
            _introduce(run, report, found, provenance)
            saving = Saving(run, checkpoints, provenance.about(), report.saved)
            _train(run, report, saving, stop or StopRequest())
    return run


def _train(run: Run, report: Report, saving: Saving, stop: StopRequest) -> None:
    """All that there is to do of the run, unless it is stopped."""
    check_replicas(run.replicas(), run.step, run.ranks)
    if run.step == 0:
        _evaluate(run, report, StopRequest())  # which a signal ends at once, with the run
    with stop.deferred():
        if _evaluation_missed(run, report):
            _evaluate(run, report, stop)
        if not run.stopped:
            _steps(run, report, saving, stop)
        _end(run, report, saving)


def _steps(run: Run, report: Report, saving: Saving, stop: StopRequest) -> None:
    """The run's steps, and what lies between them."""
    start = run.step

    def notices() -> Notices:
        return Notices(stop.received, int(saving.notice), int(report.diverged))

    limit = seconds_of(run.config.launch.step_timeout)
    with watching(run.ranks, limit, partial(_record_hang, run)) as watchdog:
        for batch, metrics, heard in _taken(run, notices, watchdog):
            if run.step == start:
                _show_faces(run, report, batch)
            report.step(run.step + 1, metrics)
            run.step += 1
            run.stopped = heard.signal if run.step < run.last_step else 0
            if heard.diverged and _problem(run):  # else a step was taken since
                return
            with watchdog.paused():
                scores = _evaluate(run, report, stop) if _evaluation_due(run) else None
                with report.untimed():
                    saving.after_step(bool(heard.save), report.seconds, scores)
            if run.stopped:
                return


def _record_hang(run: Run) -> None:
    """Write this rank's latest collectives, where the run is about to end because a rank stands still."""
    if run.config.launch.flight_recorder:
        flight_recorder.dump(Path(run.config.output) / "flight_recorder", run.ranks.rank)


def _show_faces(run: Run, report: Report, batch: Batch) -> None:
    with report.untimed():
        report.picture(
            "workings_faces/as_trained", images.sheet(batch.images.cpu().numpy(), 8, 8), run.step + 1
        )


def _show_identities(run: Run, report: Report) -> None:
    """The embeddings of some images that were trained on; on the first rank alone."""
    if found := some_identities(run.loader.dataset):
        faces, names = zip(*found, strict=True)
        report.identities(run.step, run.embed_faces(faces), list(names), list(faces))


def _evaluate(run: Run, report: Report, stop: StopRequest) -> dict[str, Scores] | None:
    """The scores of each set, on the first rank; None where the evaluation, and with it the run, was stopped."""
    with report.evaluating():
        try:
            return report.evaluated(run.step, run.sets, run.embed_sets(stop.asked, report.tracked))
        except EvaluationStopped as stopped:
            run.stopped = stopped.signal
            return None


def _evaluation_missed(run: Run, report: Report) -> bool:
    """Whether the run goes on after an evaluation that was due and stopped."""
    missed = run.step > 0 and _evaluation_due(run) and not report.has_scores(run.step)
    return comm.of_first_rank(missed, run.ranks.host)


def _end(run: Run, report: Report, saving: Saving) -> None:
    """Whatever the steps ended for. Where the loss is lost nothing more is saved."""
    if problem := _problem(run):
        report.catch_up()
        saving.finish()
        raise Diverged(problem)
    if run.stopped:
        name = signal.Signals(run.stopped).name
        report.say(f"stopped by {name} at step {run.step} of {run.last_step}: {saving.stop(report.seconds)}")
        return
    if problem := saving.finish():
        raise CollectiveInputError(f"step {run.step} is not saved: {problem}")
    if run.ranks.first and run.config.log.loggers and run.config.log.pictures != "off":
        _show_identities(run, report)
    report.summary(run.step, settings_of(run.config))


def _taken(
    run: Run, notices: Callable[[], Notices], watchdog: Watchdog
) -> Iterator[tuple[Batch, Metrics, Notices]]:
    """Take the run's steps, one each time the next is asked for: its batch, what it brings, and the latest that ranks have
    told each other.

    The next batch is read, and its step of the head prepared, once a step is launched on a GPU, which computes meanwhile.
    Before it is on a CPU, whose launching is computing, and where rows live outside the device: they are on their way
    while the step computes, and not only when it is through.
    """
    numbers, batches = count(run.step), run.loader.batches(run.step, run.last_step, notices)
    launched_first = run.ranks.device.type == "cuda" and run.config.head.memory == "device"

    def following() -> tuple[Batch, HeadStep] | None:
        with section("data"):
            batch = next(batches, None)
            return None if batch is None else (batch, run.head.prepare(batch.labels, next(numbers)))

    ahead = following()
    while ahead is not None:
        batch, step = ahead
        if not launched_first:
            ahead = following()
        watchdog.moved(run.step + 1)
        metrics = train_step(run, batch, step)
        if launched_first:
            ahead = following()
        yield batch, metrics, (batch if ahead is None else ahead[0]).notices


def train_step(run: Run, batch: Batch, step: HeadStep) -> Metrics:
    """One optimizer step over one global batch, with whose labels `step` was prepared; queues work and never waits
    for the device.
    """
    config, number = run.config, run.step
    rate = partial(
        schedule.rate, config.schedule, number, total=run.last_step, steps_per_epoch=run.steps_per_epoch
    )
    lr, rows_lr = rate(peak=config.optim.lr), rate(peak=config.rows_lr)
    statistics, loss_scale = run.statistics.kept(), run.optimizer.loss_scale.value.clone()
    frozen = number < in_steps(config.init.freeze_backbone, run.steps_per_epoch)
    with section("backbone"):  # [b, D]: of this rank's images
        embeddings = run.micro_batches.forward(batch.images, number, frozen=frozen)
    with section("head"):
        loss = run.head(embeddings, step)  # over all B images, the same on every rank
        if batch.teacher is not None and (weight := config.distillation.cosine_weight):
            loss = loss + weight * regression(
                embeddings, batch.teacher, config.train.global_batch_size, run.ranks.group
            )
        (loss * loss_scale).backward()
    assert embeddings.grad is not None
    if not frozen:
        with section("backbone"):
            run.statistics.start_average(statistics, run.ranks.group)  # while the gradients are summed
            run.micro_batches.backward(batch.images, number, embeddings.grad)
            run.statistics.finish_average(statistics, run.ranks.group)
    with section("optimizer"):  # all ranks skip, or none
        norm, finite = (torch.zeros_like(loss), loss.isfinite()) if frozen else run.optimizer.step(lr, loss)
        run.statistics.restore_unless(finite, statistics)
        if run.average:
            run.average.update(number, finite)
        run.health.update(number + 1, finite, loss.detach())
    diagnostics = run.observe(step) if _diagnostics_due(run) else None
    with section("head"):
        run.head.update(step, rows_lr, finite, loss_scale, teacher=batch.teacher)
    return Metrics(
        loss=loss.detach(),
        gradient_norm=norm,
        finite=finite,
        lr=lr,
        waited=batch.waited,
        replaced=batch.replaced,
        diagnostics=diagnostics,
        settings=stages_at({"head": config.head, "loss": config.loss}, number, run.steps_per_epoch),
        unreadable=batch.unreadable,
        corrupt=batch.corrupt,
    )


def _problem(run: Run) -> str | None:
    """What is wrong with the run, if it is to end for it; waits for the device. Equal on all ranks."""
    return run.health.problem(run.step, run.config.train.max_skipped_steps)


def _diagnostics_due(run: Run) -> bool:
    """Whether the step under way is looked at more closely."""
    done = run.step + 1
    return done % run.config.log.histograms_every == 0 or done == run.last_step


def _evaluation_due(run: Run) -> bool:
    every = in_steps(run.config.evaluation.every, run.steps_per_epoch)
    return schedule.due(run.step, every=every, last=run.last_step)


def _report(run: Run, provenance: Provenance) -> Report:
    output = Path(run.config.output)
    if run.ranks.first:
        (output / SUMMARY).unlink(missing_ok=True)
        with atomic_write(output / "recipe.yaml") as temporary:
            temporary.write_text(provenance.in_words(), encoding="utf-8")
    progress = RunProgress(
        run.step, run.last_step, run.steps_per_epoch, run.config.train.global_batch_size, run.seconds
    )
    return Report(
        output,
        progress,
        every=run.config.log.every,
        device=run.ranks.device,
        enabled=run.ranks.first,
        loggers=run.config.log.loggers,
        pictures=run.config.log.pictures,
        health=run.health.numbers,
        problem=lambda numbers, step: problem_of(numbers, step, run.config.train.max_skipped_steps),
    )


def _introduce(run: Run, report: Report, found: Found | None, provenance: Provenance) -> None:
    parameters = sum(parameter.numel() for parameter in run.backbone.parameters())
    identities = f"{run.head.num_classes} identities"
    present = run.loader.dataset.classes_with_images() if run.ranks.first else None
    if present is not None and present < run.head.num_classes:
        identities = f"{present} identities ({run.head.num_classes - present} classes without images)"
    report.say(
        f"{run.order.num_samples} images of {identities}, batch {run.config.train.global_batch_size} on "
        f"{run.ranks.size} rank(s) of {', '.join(comm.hosts(run.ranks))}, {run.ranks.device.type}, {torch.get_num_threads()} thread(s) each; "
        f"backbone with {parameters / 1e6:.2f} M parameters"
    )
    if found is None:
        return
    for problem in found.problems:
        report.say(f"not taken: {problem}")
    report.say(f"going on from {found.path}, at step {run.step} of {run.last_step}")
    for step, changes in provenance.history:
        if step == run.step:
            for change in changes:
                report.say(f"changed: {change}")
