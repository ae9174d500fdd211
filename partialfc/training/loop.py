"""The loop of a training run, and one step of it. Everything with state lives in Run."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch

from partialfc.config import Config
from partialfc.config.durations import parse_seconds, to_steps
from partialfc.config.provenance import Provenance, flatten_config
from partialfc.config.scheduled import scheduled_values
from partialfc.data import images
from partialfc.data.loader import Batch, StepFlags
from partialfc.data.preview import sample_identities
from partialfc.evaluation.embed import EvaluationStoppedError
from partialfc.evaluation.sets import Scores
from partialfc.head import HeadStep
from partialfc.monitoring.run_logger import RunLogger
from partialfc.monitoring.step_metrics import RunProgress, StepMetrics
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import CheckpointManager, VerifiedCheckpoint
from partialfc.runtime.comm import CollectiveInputError, DistContext
from partialfc.runtime.files import SUMMARY_FILE, atomic_write
from partialfc.runtime.process import flight_recorder
from partialfc.runtime.process.run_lock import lock_output_folder
from partialfc.runtime.process.signals import StopRequest
from partialfc.runtime.process.watchdog import Watchdog, watch
from partialfc.runtime.timing import section
from partialfc.training import schedule
from partialfc.training.checkpoint_scheduler import CheckpointScheduler
from partialfc.training.distillation_loss import cosine_distillation_loss
from partialfc.training.health import DivergenceError, check_replicas, describe_problem
from partialfc.training.resume import find_resume_point, is_finished, start_or_resume
from partialfc.training.run import Run


def train(config: Config, dist_ctx: DistContext, stop_request: StopRequest | None = None) -> Run:
    """Train up to `train.length`, going on from the checkpoint that `checkpoint.resume` means, or up to the step in which
    `stop_request` is requested on any rank: then the run is saved, and `stopped`.

    Diverged where the loss is lost; CollectiveInputError on bad input, and where the last checkpoint cannot be written.
    """
    output = Path(config.output)
    with lock_output_folder(output, dist_ctx):
        checkpoints = CheckpointManager(
            output / "checkpoints", keep=config.checkpoint.keep, dist_ctx=dist_ctx
        )
        found = find_resume_point(checkpoints, config.checkpoint.resume)
        run, provenance = start_or_resume(config, dist_ctx, checkpoints, found)
        if found is not None and is_finished(output, run):
            if dist_ctx.is_main:
                print(f"{output}: finished at step {run.step}", flush=True)
            return run
        with comm.raise_on_all_ranks(dist_ctx):
            report = _create_run_logger(run, provenance)
        with report:
            report.log_config(provenance.to_yaml(), flatten_config(run.config))
            _log_start(run, report, found, provenance)
            saving = CheckpointScheduler(run, checkpoints, provenance.to_dict(), report.log_checkpoint)
            _run(run, report, saving, stop_request or StopRequest())
    return run


def _run(run: Run, run_logger: RunLogger, scheduler: CheckpointScheduler, stop: StopRequest) -> None:
    """All that there is to do of the run, unless it is stopped."""
    check_replicas(run.replicas(), run.step, run.dist_ctx)
    if run.step == 0:
        _evaluate(run, run_logger, StopRequest())  # which a signal ends at once, with the run
    with stop.defer():
        if _evaluation_was_missed(run, run_logger):
            _evaluate(run, run_logger, stop)
        if not run.stop_signal:
            _run_steps(run, run_logger, scheduler, stop)
        _finish(run, run_logger, scheduler)


def _run_steps(run: Run, run_logger: RunLogger, scheduler: CheckpointScheduler, stop: StopRequest) -> None:
    """The run's steps, and what lies between them."""
    start = run.step

    def notices() -> StepFlags:
        return StepFlags(stop.signal_number, int(scheduler.is_due), int(run_logger.has_diverged))

    limit = parse_seconds(run.config.launch.step_timeout)
    with watch(run.dist_ctx, limit, partial(_record_hang, run)) as watchdog:
        for batch, metrics, heard in _iterate_steps(run, notices, watchdog):
            if run.step == start:
                _log_training_images(run, run_logger, batch)
            run_logger.log_step(run.step + 1, metrics)
            run.step += 1
            run.stop_signal = heard.signal if run.step < run.total_steps else 0
            if heard.diverged and _find_problem(run):  # else a step was taken since
                return
            with watchdog.pause():
                scores = _evaluate(run, run_logger, stop) if _is_evaluation_due(run) else None
                with run_logger.pause_timing():
                    scheduler.after_step(bool(heard.save_due), run_logger.elapsed_seconds, scores)
            if run.stop_signal:
                return


def _record_hang(run: Run) -> None:
    """Write this rank's latest collectives, where the run is about to end because a rank stands still."""
    if run.config.launch.flight_recorder:
        flight_recorder.dump(Path(run.config.output) / "flight_recorder", run.dist_ctx.rank)


def _log_training_images(run: Run, run_logger: RunLogger, batch: Batch) -> None:
    with run_logger.pause_timing():
        run_logger.log_image(
            "workings_faces/as_trained", images.image_grid(batch.images.cpu().numpy(), 8, 8), run.step + 1
        )


def _log_identity_embeddings(run: Run, run_logger: RunLogger) -> None:
    """The embeddings of some images that were trained on; on the first rank alone."""
    if found := sample_identities(run.loader.dataset):
        faces, names = zip(*found, strict=True)
        run_logger.log_identities(run.step, run.embed_images(faces), list(names), list(faces))


def _evaluate(run: Run, report: RunLogger, stop: StopRequest) -> dict[str, Scores] | None:
    """The scores of each set, on the first rank; None where the evaluation, and with it the run, was stopped."""
    with report.time_evaluation():
        try:
            return report.log_evaluation(
                run.step, run.eval_sets, run.embed_sets(stop.get_signal, report.tracked)
            )
        except EvaluationStoppedError as stopped:
            run.stop_signal = stopped.signal
            return None


def _evaluation_was_missed(run: Run, run_logger: RunLogger) -> bool:
    """Whether the run goes on after an evaluation that was due and stopped."""
    missed = run.step > 0 and _is_evaluation_due(run) and not run_logger.has_scores(run.step)
    return comm.broadcast_object(missed, run.dist_ctx.host_group)


def _finish(run: Run, run_logger: RunLogger, scheduler: CheckpointScheduler) -> None:
    """Whatever the steps ended for. Where the loss is lost nothing more is saved."""
    if problem := _find_problem(run):
        run_logger.flush()
        scheduler.wait()
        raise DivergenceError(problem)
    if run.stop_signal:
        name = signal.Signals(run.stop_signal).name
        run_logger.log_message(
            f"stopped by {name} at step {run.step} of {run.total_steps}: {scheduler.save_and_stop(run_logger.elapsed_seconds)}"
        )
        return
    if problem := scheduler.wait():
        raise CollectiveInputError(f"step {run.step} is not saved: {problem}")
    if run.dist_ctx.is_main and run.config.log.loggers and run.config.log.pictures != "off":
        _log_identity_embeddings(run, run_logger)
    run_logger.write_summary(run.step, flatten_config(run.config))


def _iterate_steps(
    run: Run, get_flags: Callable[[], StepFlags], watchdog: Watchdog
) -> Iterator[tuple[Batch, StepMetrics, StepFlags]]:
    """Take the run's steps, one each time the next is asked for: its batch, what it brings, and the latest that ranks have
    told each other.

    The next batch is read, and its step of the head prepared, once a step is launched on a GPU, which computes meanwhile.
    Before it is on a CPU, whose launching is computing, and where rows live outside the device: they are on their way
    while the step computes, and not only when it is through.
    """
    numbers, batches = count(run.step), run.loader.batches(run.step, run.total_steps, get_flags)
    launched_first = run.dist_ctx.device.type == "cuda" and run.config.head.memory == "device"

    def following() -> tuple[Batch, HeadStep] | None:
        with section("data"):
            batch = next(batches, None)
            return None if batch is None else (batch, run.head.prepare(batch.labels, next(numbers)))

    ahead = following()
    while ahead is not None:
        batch, step = ahead
        if not launched_first:
            ahead = following()
        watchdog.begin_step(run.step + 1)
        metrics = train_step(run, batch, step)
        if launched_first:
            ahead = following()
        yield batch, metrics, (batch if ahead is None else ahead[0]).flags


def train_step(run: Run, batch: Batch, head_step: HeadStep) -> StepMetrics:
    """One optimizer step over one global batch, with whose labels `head_step` was prepared; queues work and never waits
    for the device.
    """
    config, number = run.config, run.step
    rate = partial(
        schedule.learning_rate,
        config.schedule,
        number,
        total_steps=run.total_steps,
        steps_per_epoch=run.steps_per_epoch,
    )
    lr, rows_lr = rate(peak=config.optim.lr), rate(peak=config.center_lr)
    statistics, loss_scale = run.running_stats.clone(), run.optimizer.loss_scale.value.clone()
    frozen = number < to_steps(config.init.freeze_backbone, run.steps_per_epoch)
    with section("backbone"):  # [b, D]: of this rank's images
        embeddings = run.micro_batch_runner.forward(batch.images, number, frozen=frozen)
    with section("head"):
        loss = run.head(embeddings, head_step)  # over all B images, the same on every rank
        if batch.teacher_embeddings is not None and (weight := config.distillation.cosine_weight):
            loss = loss + weight * cosine_distillation_loss(
                embeddings, batch.teacher_embeddings, config.train.global_batch_size, run.dist_ctx.group
            )
        (loss * loss_scale).backward()
    assert embeddings.grad is not None
    if not frozen:
        with section("backbone"):
            run.running_stats.start_average(statistics, run.dist_ctx.group)  # while the gradients are summed
            run.micro_batch_runner.backward(batch.images, number, embeddings.grad)
            run.running_stats.finish_average(statistics, run.dist_ctx.group)
    with section("optimizer"):  # all ranks skip, or none
        norm, finite = (torch.zeros_like(loss), loss.isfinite()) if frozen else run.optimizer.step(lr, loss)
        run.running_stats.restore_unless(finite, statistics)
        if run.ema:
            run.ema.update(number, finite)
        run.health.update(number + 1, finite, loss.detach())
    diagnostics = run.collect_diagnostics(head_step) if _is_diagnostics_due(run) else None
    with section("head"):
        run.head.update(head_step, rows_lr, finite, loss_scale, teacher=batch.teacher_embeddings)
    return StepMetrics(
        loss=loss.detach(),
        grad_norm=norm,
        is_finite=finite,
        lr=lr,
        data_wait_seconds=batch.data_wait_seconds,
        num_replaced=batch.num_replaced,
        diagnostics=diagnostics,
        scheduled_values=scheduled_values(
            {"head": config.head, "loss": config.loss}, number, run.steps_per_epoch
        ),
        unreadable=batch.unreadable,
        corrupt=batch.corrupt,
    )


def _find_problem(run: Run) -> str | None:
    """What is wrong with the run, if it is to end for it; waits for the device. Equal on all ranks."""
    return run.health.find_problem(run.step, run.config.train.max_skipped_steps)


def _is_diagnostics_due(run: Run) -> bool:
    """Whether the step under way is looked at more closely."""
    done = run.step + 1
    return done % run.config.log.histograms_every == 0 or done == run.total_steps


def _is_evaluation_due(run: Run) -> bool:
    every = to_steps(run.config.evaluation.every, run.steps_per_epoch)
    return schedule.is_due(run.step, every=every, last=run.total_steps)


def _create_run_logger(run: Run, provenance: Provenance) -> RunLogger:
    output = Path(run.config.output)
    if run.dist_ctx.is_main:
        (output / SUMMARY_FILE).unlink(missing_ok=True)
        with atomic_write(output / "recipe.yaml") as temporary:
            temporary.write_text(provenance.to_yaml(), encoding="utf-8")
    progress = RunProgress(
        run.step,
        run.total_steps,
        run.steps_per_epoch,
        run.config.train.global_batch_size,
        run.elapsed_seconds,
    )
    return RunLogger(
        output,
        progress,
        log_every=run.config.log.every,
        device=run.dist_ctx.device,
        enabled=run.dist_ctx.is_main,
        loggers=run.config.log.loggers,
        pictures=run.config.log.pictures,
        health_numbers=run.health.counters,
        find_problem=lambda numbers, step: describe_problem(
            numbers, step, run.config.train.max_skipped_steps
        ),
    )


def _log_start(
    run: Run, run_logger: RunLogger, checkpoint: VerifiedCheckpoint | None, provenance: Provenance
) -> None:
    parameters = sum(parameter.numel() for parameter in run.backbone.parameters())
    identities = f"{run.head.num_classes} identities"
    present = run.loader.dataset.classes_with_images() if run.dist_ctx.is_main else None
    if present is not None and present < run.head.num_classes:
        identities = f"{present} identities ({run.head.num_classes - present} classes without images)"
    run_logger.log_message(
        f"{run.sample_order.num_samples} images of {identities}, batch {run.config.train.global_batch_size} on "
        f"{run.dist_ctx.world_size} rank(s) of {', '.join(comm.all_hostnames(run.dist_ctx))}, {run.dist_ctx.device.type}, {torch.get_num_threads()} thread(s) each; "
        f"backbone with {parameters / 1e6:.2f} M parameters"
    )
    if checkpoint is None:
        return
    for problem in checkpoint.problems:
        run_logger.log_message(f"not taken: {problem}")
    run_logger.log_message(f"going on from {checkpoint.path}, at step {run.step} of {run.total_steps}")
    for step, changes in provenance.history:
        if step == run.step:
            for change in changes:
                run_logger.log_message(f"changed: {change}")
