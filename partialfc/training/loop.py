"""Training loop and training step. All state is in Run."""

import signal
from collections.abc import Callable, Generator
from contextlib import closing
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
from partialfc.monitoring.main_logger import MainRunLogger
from partialfc.monitoring.rank_times import RankTimes
from partialfc.monitoring.run_logger import RankLogger, RunLogger
from partialfc.monitoring.step_metrics import RunProgress, StepMetrics
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import CheckpointManager, VerifiedCheckpoint
from partialfc.runtime.comm import CollectiveInputError, DistContext
from partialfc.runtime.files import SUMMARY_FILE, atomic_write
from partialfc.runtime.process import flight_recorder
from partialfc.runtime.process.run_lock import lock_output_folder
from partialfc.runtime.process.signals import StopRequest
from partialfc.runtime.process.watchdog import watch
from partialfc.runtime.timing import section
from partialfc.training import schedule
from partialfc.training.checkpoint_scheduler import CheckpointScheduler
from partialfc.training.distillation_loss import cosine_distillation_loss
from partialfc.training.flops import peak_flops
from partialfc.training.health import DivergenceError, check_replicas, describe_problem
from partialfc.training.resume import check_if_finished, find_resume_point, start_or_resume
from partialfc.training.run import Run
from partialfc.training.step_profiler import StepProfiler


def train(config: Config, dist_ctx: DistContext, stop_request: StopRequest | None = None) -> Run:
    """Train a recipe up to `train.length`, starting or resuming as `checkpoint.resume` specifies.

    A stop request on any rank ends the run after the current step: the run is saved and its `stop_signal` is set.

    Returns:
        The run, at its last step.

    Raises:
        DivergenceError: If the loss or gradients stay non-finite, or replicas differ.
        CollectiveInputError: If the input is bad, or the last checkpoint cannot be written.
    """
    output = Path(config.output)
    with lock_output_folder(output, dist_ctx):
        checkpoints = CheckpointManager(
            output / "checkpoints", keep=config.checkpoint.keep, dist_ctx=dist_ctx
        )
        checkpoint = find_resume_point(checkpoints, config.checkpoint.resume)
        run, provenance = start_or_resume(config, dist_ctx, checkpoints, checkpoint)
        if checkpoint is not None and check_if_finished(output, run):
            if dist_ctx.is_main:
                print(f"{output}: already finished at step {run.step}", flush=True)
            return run
        rank_times = RankTimes(dist_ctx) if dist_ctx.world_size > 1 else None
        with comm.raise_on_all_ranks(dist_ctx):
            run_logger = _create_run_logger(run, provenance, rank_times)
        with run_logger:
            run_logger.log_config(provenance.to_yaml(), flatten_config(run.config))
            _log_start(run, run_logger, checkpoint, provenance)
            scheduler = CheckpointScheduler(run, checkpoints, provenance.to_dict(), run_logger.log_checkpoint)
            _run(run, run_logger, scheduler, stop_request or StopRequest())
    return run


def _run(run: Run, run_logger: RunLogger, scheduler: CheckpointScheduler, stop: StopRequest) -> None:
    """Evaluate and train until the run is finished, stopped or diverged."""
    check_replicas(run.replicas(), run.step, run.dist_ctx)
    if run.step == 0:
        _evaluate(run, run_logger, StopRequest())  # a signal ends it, and the run, immediately
    with stop.defer():
        if _agree_on_missed_evaluation(run, run_logger):
            _evaluate(run, run_logger, stop)
        if not run.stop_signal:
            _run_steps(run, run_logger, scheduler, stop)
        _finish(run, run_logger, scheduler)


def _run_steps(run: Run, run_logger: RunLogger, scheduler: CheckpointScheduler, stop: StopRequest) -> None:
    """Train until the last step, a stop signal or divergence.

    The next batch is read and prepared while the device computes: after the launch of a step on a GPU; before it on a
    CPU, where launching is computing, and if rows are offloaded, since they are copied during the step.
    """

    def get_flags() -> StepFlags:
        return StepFlags(stop.signal_number, int(scheduler.is_due), int(run_logger.has_diverged))

    start = run.step
    launches_first = run.dist_ctx.device.type == "cuda" and run.config.head.memory == "device"
    limit = parse_seconds(run.config.launch.step_timeout)
    # Closing the batches ends the data workers, even if a traceback of an ignored error refers to this frame.
    with (
        watch(run.dist_ctx, limit, partial(_record_hang, run)) as watchdog,
        closing(_prepare_batches(run, get_flags)) as prepared,
        closing(
            StepProfiler(run.config.log.profile, Path(run.config.output, "profile"), run.dist_ctx)
        ) as profiler,
    ):
        following = next(prepared, None)
        while following is not None:
            batch, head_step = following
            if not launches_first:
                following = next(prepared, None)
            watchdog.begin_step(run.step + 1)
            profiler.begin_step(run.step + 1)
            metrics = train_step(run, batch, head_step)
            if launches_first:
                following = next(prepared, None)
            if run.step == start:
                _log_training_images(run, run_logger, batch)
            run_logger.log_step(run.step + 1, metrics)
            run.step += 1
            flags = (batch if following is None else following[0]).flags  # the latest that all ranks agree on
            run.stop_signal = flags.signal if run.step < run.total_steps else 0
            if flags.diverged and _find_problem(run):  # otherwise a later step was applied
                return
            with watchdog.pause():
                _log_trace(profiler, run_logger)
                scores = _evaluate(run, run_logger, stop) if _is_evaluation_due(run) else None
                with run_logger.pause_timing():
                    scheduler.after_step(bool(flags.save_due), run_logger.elapsed_seconds, scores)
            if run.stop_signal:
                return


def _prepare_batches(
    run: Run, get_flags: Callable[[], StepFlags]
) -> Generator[tuple[Batch, HeadStep], None, None]:
    """Yield the remaining batches of the run, and the head's step of each, prepared with its labels."""
    batches = run.loader.batches(run.step, run.total_steps, get_flags)
    for step in count(run.step):
        with section("data"):
            batch = next(batches, None)
            if batch is None:
                return
            prepared = batch, run.head.prepare(batch.labels, step)
        yield prepared


def _record_hang(run: Run) -> None:
    """Write this rank's latest collectives, before a run with a stalled rank is ended."""
    if run.config.launch.flight_recorder:
        flight_recorder.dump(Path(run.config.output) / "flight_recorder", run.dist_ctx.rank)


def _log_trace(profiler: StepProfiler, run_logger: RunLogger) -> None:
    """End a step of the profiler, which writes its trace after the last one."""
    with run_logger.pause_timing():
        message = profiler.end_step()
    if message:
        run_logger.log_message(message)


def _log_training_images(run: Run, run_logger: RunLogger, batch: Batch) -> None:
    with run_logger.pause_timing():
        run_logger.log_image(
            "train_images/batch", images.image_grid(batch.images.cpu().numpy(), 8, 8), run.step + 1
        )


def _log_identity_embeddings(run: Run, run_logger: RunLogger) -> None:
    """Log embeddings of some training images; on rank 0 only."""
    if samples := sample_identities(run.loader.dataset):
        face_images, names = zip(*samples, strict=True)
        run_logger.log_identities(run.step, run.embed_images(face_images), list(names), list(face_images))


def _evaluate(run: Run, run_logger: RunLogger, stop: StopRequest) -> dict[str, Scores] | None:
    """Return the scores of each set on rank 0, {} on the other ranks; None if evaluation and run were stopped."""
    with run_logger.time_evaluation():
        try:
            return run_logger.log_evaluation(
                run.step, run.eval_sets, run.embed_sets(stop.get_signal, run_logger.tracked)
            )
        except EvaluationStoppedError as stopped:
            run.stop_signal = stopped.signal
            return None


def _agree_on_missed_evaluation(run: Run, run_logger: RunLogger) -> bool:
    """Return True on all ranks if the run resumes after an evaluation that was due but interrupted."""
    missed = run.step > 0 and _is_evaluation_due(run) and not run_logger.has_scores(run.step)
    return comm.broadcast_object(missed, run.dist_ctx.host_group)


def _finish(run: Run, run_logger: RunLogger, scheduler: CheckpointScheduler) -> None:
    """End a run that is finished, stopped or diverged. A diverged run saves nothing."""
    if problem := _find_problem(run):
        run_logger.flush()
        scheduler.wait()
        raise DivergenceError(problem)
    if run.stop_signal:
        name = signal.Signals(run.stop_signal).name
        result = scheduler.save_and_stop(run_logger.elapsed_seconds)
        run_logger.log_message(f"stopped by {name} at step {run.step} of {run.total_steps}; {result}")
        return
    if problem := scheduler.wait():
        raise CollectiveInputError(f"checkpoint at step {run.step} failed: {problem}")
    if run.dist_ctx.is_main and run.config.log.loggers and run.config.log.pictures != "off":
        _log_identity_embeddings(run, run_logger)
    run_logger.write_summary(run.step, flatten_config(run.config))


def train_step(run: Run, batch: Batch, head_step: HeadStep) -> StepMetrics:
    """Run one optimizer step on a global batch, without synchronizing with the device.

    `head_step` must have been prepared with the labels of `batch`.

    Returns:
        Metrics of the step.
    """
    config, step = run.config, run.step
    learning_rate = partial(
        schedule.learning_rate,
        config.schedule,
        step,
        total_steps=run.total_steps,
        steps_per_epoch=run.steps_per_epoch,
    )
    lr = learning_rate(peak=config.optim.lr)
    statistics, loss_scale = run.running_stats.clone(), run.optimizer.loss_scale.value.clone()
    is_frozen = step < to_steps(config.init.freeze_backbone, run.steps_per_epoch)
    with section("backbone"):  # [b, D], images of this rank
        embeddings = run.micro_batch_runner.forward(batch.images, step, frozen=is_frozen)
    with section("head"):
        loss = run.head(embeddings, head_step)  # scalar over all B images, equal on all ranks
        if batch.teacher_embeddings is not None and (weight := config.distillation.cosine_weight):
            loss = loss + weight * cosine_distillation_loss(
                embeddings, batch.teacher_embeddings, config.train.global_batch_size, run.dist_ctx.group
            )
        (loss * loss_scale).backward()
    assert embeddings.grad is not None
    if not is_frozen:
        with section("backbone"):
            # Overlaps with the sum of gradients.
            run.running_stats.start_average(statistics, run.dist_ctx.group)
            run.micro_batch_runner.backward(batch.images, step, embeddings.grad)
            run.running_stats.finish_average(statistics, run.dist_ctx.group)
    with section("optimizer"):  # all ranks skip the step, or none
        grad_norm, finite = (
            (torch.zeros_like(loss), loss.isfinite()) if is_frozen else run.optimizer.step(lr, loss)
        )
        run.running_stats.restore_unless(finite, statistics)
        if run.ema:
            run.ema.update(step, finite)
        run.health.update(step + 1, finite, loss.detach())
    diagnostics = run.collect_diagnostics(head_step) if _is_diagnostics_due(run) else None
    with section("head"):
        run.head.update(
            head_step,
            learning_rate(peak=config.center_lr),
            finite,
            loss_scale,
            teacher=batch.teacher_embeddings,
        )
    return StepMetrics(
        loss=loss.detach(),
        grad_norm=grad_norm,
        is_finite=finite,
        lr=lr,
        data_wait_seconds=batch.data_wait_seconds,
        num_replaced=batch.num_replaced,
        flops=run.flops(head_step.classes.num_active, frozen=is_frozen),
        diagnostics=diagnostics,
        scheduled_values=scheduled_values(
            {"head": config.head, "loss": config.loss}, step, run.steps_per_epoch
        ),
        unreadable=batch.unreadable,
        corrupt=batch.corrupt,
    )


def _find_problem(run: Run) -> str | None:
    """Return the problem that ends the run, or None; synchronizes with the device. Equal on all ranks."""
    return run.health.find_problem(run.step, run.config.train.max_skipped_steps)


def _is_diagnostics_due(run: Run) -> bool:
    """Return True if diagnostics are due for the current step."""
    return schedule.is_due(run.step + 1, every=run.config.log.histograms_every, last=run.total_steps)


def _is_evaluation_due(run: Run) -> bool:
    every = to_steps(run.config.evaluation.every, run.steps_per_epoch)
    return schedule.is_due(run.step, every=every, last=run.total_steps)


def _create_run_logger(run: Run, provenance: Provenance, rank_times: RankTimes | None) -> RunLogger:
    progress = RunProgress(
        run.step,
        run.total_steps,
        run.steps_per_epoch,
        run.config.train.global_batch_size,
        run.elapsed_seconds,
        peak_flops(run.config.optim.precision, run.dist_ctx.device),
    )
    log, device = run.config.log, run.dist_ctx.device
    if not run.dist_ctx.is_main:
        assert rank_times is not None
        return RankLogger(progress, log_every=log.every, device=device, rank_times=rank_times)
    output = Path(run.config.output)
    (output / SUMMARY_FILE).unlink(missing_ok=True)
    with atomic_write(output / "recipe.yaml") as temporary:
        temporary.write_text(provenance.to_yaml(), encoding="utf-8")
    return MainRunLogger(
        output,
        progress,
        log_every=log.every,
        device=device,
        loggers=log.loggers,
        pictures=log.pictures,
        health_numbers=run.health.counters,
        find_problem=lambda numbers, step: describe_problem(
            numbers, step, run.config.train.max_skipped_steps
        ),
        rank_times=rank_times,
    )


def _log_start(
    run: Run, run_logger: RunLogger, checkpoint: VerifiedCheckpoint | None, provenance: Provenance
) -> None:
    dist_ctx, num_classes = run.dist_ctx, run.head.num_classes
    hostnames = comm.gather_hostnames(dist_ctx)
    num_parameters = sum(parameter.numel() for parameter in run.backbone.parameters())
    identities = f"{num_classes} identities"
    num_present = run.loader.dataset.classes_with_images() if dist_ctx.is_main else None
    if num_present is not None and num_present < num_classes:
        identities = f"{num_present} identities ({num_classes - num_present} classes without images)"
    run_logger.log_message(
        f"{run.sample_order.num_samples} images of {identities}; "
        f"global batch size {run.config.train.global_batch_size} on "
        f"{dist_ctx.world_size} rank(s) of {', '.join(hostnames)}, {dist_ctx.device.type}, "
        f"{torch.get_num_threads()} thread(s) each; backbone has {num_parameters / 1e6:.2f} M parameters"
    )
    if checkpoint is None:
        return
    for problem in checkpoint.problems:
        run_logger.log_message(f"checkpoint skipped: {problem}")
    run_logger.log_message(f"resuming from {checkpoint.path} at step {run.step} of {run.total_steps}")
    for step, changes in provenance.history:
        if step == run.step:
            for change in changes:
                run_logger.log_message(f"config changed: {change}")
