"""Trials of a run's parts: the head, the pack, the output folder, some steps, a checkpoint."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.distributed import ProcessGroup

from partialfc.config import SGD, AnyLoss, Config, CosFace, HeadConfig
from partialfc.data import RecordDataset, synthetic
from partialfc.doctor.result import CheckResult
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.head.kernels.torch_centers import CENTERS
from partialfc.head.losses import LossInputs, MarginLoss, build_loss
from partialfc.head.reference import dense_loss
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint import CheckpointManager
from partialfc.runtime.comm import CollectiveInputError, DistContext
from partialfc.runtime.process.run_lock import lock_output_folder
from partialfc.training.loop import train_step
from partialfc.training.run import Run, build_run

_CLASSES, _WIDTH, _BATCH = 1009, 64, 32  # of a small head; the number of classes is not divisible
_SCALE, _MARGIN = 16.0, 0.2
_TOLERANCE = 1e-4
_CLOSE_DERIVATIVE = 1e-5  # tolerance of float32 settings, in double precision
_READ = 256  # images of the pack
# Minimum and maximum number of steps, and seconds after which no more are started.
_MIN_STEPS, _MAX_STEPS, _TIME_LIMIT = 3, 20, 20.0


def loss(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Compare the derivatives of the recipe's loss with autograd, and its head over all ranks with one rank."""
    settings = config.loss
    lines: list[str] = []
    problems: list[str] = []
    if getattr(settings, "gradient", "exact") == "detached":
        lines.append("derivative of the logit fixed at 1 (loss.gradient: detached)")
    else:
        worst = max(_off_derivatives(settings))
        told = f"derivatives of the target logit match autograd: error {worst:.0e}"
        (lines if worst < _CLOSE_DERIVATIVE else problems).append(told)
    with comm.alone(dist_ctx) as alone:
        off = max(comm.all_gather_object(_off_one_rank(config, dist_ctx, alone), dist_ctx.host_group))
    told = f"head of the recipe on {dist_ctx.world_size} rank(s) matches one rank: error {off:.0e}"
    (lines if off < _TOLERANCE else problems).append(told)
    return CheckResult(lines, problems)


def _off_derivatives(config: AnyLoss) -> Iterator[float]:
    """Yield the largest error of a loss's derivatives by cosine, and by norm if it depends on it."""
    loss = build_loss(config, steps_per_epoch=1)
    if not loss.on_sphere:  # a linear layer, whose logit is no function of the angle
        yield 0.0
        return
    loss.init_state(_CLASSES)
    angle = torch.linspace(0.1, 3.0, _BATCH, dtype=torch.float64)
    draws = loss.draw(0, 0, _BATCH)
    inputs = LossInputs(
        torch.ones(_BATCH, dtype=torch.bool),
        torch.tensor(_BATCH, dtype=torch.float64),
        None if draws is None else torch.from_numpy(draws),
        angle.cos() if loss.needs_cosines else None,
        torch.linspace(12.0, 100.0, _BATCH, dtype=torch.float64) if loss.needs_norms else None,
    )
    loss = loss.with_state(loss.next_state(inputs))
    arguments = angle, inputs.norms, loss.assign_draws(inputs)
    actual, expected = (
        loss.logit_with_derivatives(*arguments),
        MarginLoss.logit_with_derivatives(loss, *arguments),
    )
    yield float(
        (actual.by_cosine - expected.by_cosine).abs().max() / actual.by_cosine.abs().max().clamp_min(1)
    )
    if actual.by_norm is not None and expected.by_norm is not None:
        yield float(
            (actual.by_norm - expected.by_norm).abs().max() / expected.by_norm.abs().max().clamp_min(1e-3)
        )


def _off_one_rank(config: Config, dist_ctx: DistContext, alone: ProcessGroup) -> float:
    """Return the largest relative difference of loss and gradients between all ranks and one rank."""
    share = -(-_BATCH // dist_ctx.world_size)
    draws = torch.Generator().manual_seed(0)
    gathered = torch.randn(share * dist_ctx.world_size, _WIDTH, generator=draws)
    labels = torch.randint(_CLASSES, (len(gathered),), generator=draws)
    mine = slice(dist_ctx.rank * share, (dist_ctx.rank + 1) * share)
    settings = msgspec.structs.replace(
        config.head, memory="device", matmul_precision="float32", kernels="torch", optim=None
    )
    found = []
    for group, images in ((dist_ctx.group, mine), (alone, slice(None))):
        tried = PartialFC(
            _CLASSES, _WIDTH, config.loss, config=settings, optim=config.center_optimizer, device=dist_ctx.device, group=group,
            steps_per_epoch=1,
        )  # fmt: skip
        local = gathered[images].to(dist_ctx.device).requires_grad_()
        loss = tried(local, tried.prepare(labels, 0))
        loss.backward()
        assert local.grad is not None
        gradient = local.grad if group is dist_ctx.group else local.grad[mine]
        found.append((loss.detach(), gradient))
    (one, by_one), (all_, by_all) = found
    return max(
        float((one - all_).abs() / all_.abs()), float((by_one - by_all).abs().max() / by_all.abs().max())
    )


def try_head(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Compare loss and gradients of a small sharded head with the dense formula in double precision."""
    share = -(-_BATCH // dist_ctx.world_size)
    draws = torch.Generator().manual_seed(0)
    gathered = torch.randn(share * dist_ctx.world_size, _WIDTH, generator=draws)
    labels = torch.randint(_CLASSES, (len(gathered),), generator=draws)
    loss_settings = CosFace(scale=_SCALE, margin=_MARGIN)
    tried = PartialFC(
        _CLASSES, _WIDTH, loss_settings, config=HeadConfig(matmul_precision="float32"), optim=SGD(), device=dist_ctx.device, group=dist_ctx.group,
    )  # fmt: skip
    mine = slice(dist_ctx.rank * share, (dist_ctx.rank + 1) * share)
    local = gathered[mine].to(dist_ctx.device).requires_grad_()
    loss = tried(local, tried.prepare(labels, 0))
    loss.backward()
    assert local.grad is not None
    own = dtensors.local_rows_and_offset(tried.state_dict()[CENTERS])[0].cpu().numpy()
    whole = torch.from_numpy(np.concatenate(comm.all_gather_object(own, dist_ctx.host_group))).double()
    dense = gathered.double().requires_grad_()
    expected = dense_loss(dense, whole, labels, loss_settings, active=torch.ones(_CLASSES, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(expected, dense)
    off = abs(loss.item() - expected.item()) / expected.item()
    gradient_off = float((local.grad.cpu() - gradient[mine]).abs().max() / gradient.abs().max())
    worst = [
        max(it) for it in zip(*comm.all_gather_object((off, gradient_off), dist_ctx.host_group), strict=True)
    ]
    said = f"sharded head matches dense reference: loss error {worst[0]:.0e}, gradient error {worst[1]:.0e}"
    return (
        CheckResult([said])
        if max(worst) < _TOLERANCE
        else CheckResult([], [f"does not match the dense reference: {said}"])
    )


def try_pack(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Read some random images of the pack on each rank."""
    folder = Path(config.data.path)
    with comm.raise_on_all_ranks(dist_ctx):
        if config.data.synthetic is not None:
            synthetic.ensure_pack(folder, config.data.synthetic)
        dataset = RecordDataset(folder, config.backbone.input_size, reader=config.data.reader)
    chosen = np.random.default_rng(dist_ctx.rank).integers(len(dataset), size=min(_READ, len(dataset)))
    began, damaged = time.perf_counter(), []
    for index in chosen:
        try:
            _ = dataset[int(index)]
        except InputError as error:
            damaged.append(str(error))
    taken = time.perf_counter() - began
    found = comm.all_gather_object((len(chosen) / taken, damaged), dist_ctx.host_group)
    slowest = min(speed for speed, _ in found)
    counts = f"{len(dataset)} images of {dataset.num_classes} identities"
    lines = [
        f"{folder}: {counts}; {len(chosen)} random ones read, {slowest:.0f} images/s in the slowest process"
    ]
    problems = [told for _, every in found for told in every]
    if problems and config.data.on_corrupt == "skip":
        return CheckResult([*lines, f"{len(problems)} unreadable; they will be replaced"])
    return CheckResult(lines, problems)


def try_output(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Check that every rank sees the output folder, and that no other run uses it."""
    with lock_output_folder(Path(config.output), dist_ctx):
        return CheckResult([f"{config.output}: visible to all ranks, not used by another run"])


def try_steps(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Run a few training steps and save a checkpoint in a temporary folder."""
    with trial_run(config, dist_ctx) as run:
        return CheckResult([_measure_speed(run), _check_checkpoint(run, Path(run.config.output))])


@contextmanager
def trial_run(config: Config, dist_ctx: DistContext) -> Iterator[Run]:
    """Build a run with a temporary folder on the disk of the output, which is removed at the end.

    Yields:
        The run, at step 0.

    Raises:
        CollectiveInputError: If recipe, data and ranks are inconsistent. Other errors do not wait for the other ranks.
    """
    folder = Path(config.output, ".doctor")
    with comm.raise_on_all_ranks(dist_ctx):
        run = build_run(msgspec.structs.replace(config, output=str(folder)), dist_ctx)
    try:
        yield run
    except CollectiveInputError:
        _remove(folder, dist_ctx)
        raise
    _remove(folder, dist_ctx)


def _remove(folder: Path, dist_ctx: DistContext) -> None:
    comm.barrier(dist_ctx.host_group)
    if dist_ctx.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    if dist_ctx.device.type == "cuda":
        torch.cuda.empty_cache()


def _measure_speed(run: Run) -> str:
    taken, seconds = run_trial_steps(run)
    if not taken:
        return "train.length: no steps to try"
    speed = taken * run.config.train.global_batch_size / seconds
    whole = timedelta(seconds=round(seconds / taken * run.total_steps))
    return f"{taken} steps: {speed:.0f} images/s; the run's {run.total_steps} steps take {whole}, excluding evaluation"


def run_trial_steps(run: Run) -> tuple[int, float]:
    """Return the number of steps and their seconds on rank 0, without the first two, which are slower."""
    began = time.perf_counter()
    first, taken = began, 0
    for batch in run.loader.batches(0, min(_MAX_STEPS, run.total_steps)):
        train_step(run, batch, run.head.prepare(batch.labels, run.step))
        run.step += 1
        if run.dist_ctx.device.type == "cuda":
            torch.cuda.synchronize(run.dist_ctx.device)
        if run.step == min(2, run.total_steps - 1):
            first = time.perf_counter()
        taken = run.step - min(2, run.total_steps - 1)
        enough = taken >= _MIN_STEPS and time.perf_counter() - began > _TIME_LIMIT
        if comm.broadcast_object(enough, run.dist_ctx.host_group):
            break
    return taken, comm.broadcast_object(time.perf_counter() - first, run.dist_ctx.host_group)


def _check_checkpoint(run: Run, folder: Path) -> str:
    """Save the run, verify the checkpoint, and load it."""
    checkpoints = CheckpointManager(folder / "checkpoints", keep=1, dist_ctx=run.dist_ctx)
    began = time.perf_counter()
    streamed = {f"head.{name}": rows for name, rows in run.head.snapshot().items()}
    checkpoints.save(run.step, run.state(), {}, elapsed_seconds=0.0, streamed=streamed)
    outcome = checkpoints.wait()
    comm.raise_first_error(outcome.problem if outcome else None, run.dist_ctx)
    written = time.perf_counter() - began
    found = checkpoints.find_resume_point("auto")
    assert found is not None, "it was saved"
    run.restore(checkpoints, found)
    read = time.perf_counter() - began - written
    size = comm.broadcast_object(
        sum(it.stat().st_size for it in found.path.iterdir()) / 2**20, run.dist_ctx.host_group
    )
    return f"a checkpoint of {size:.1f} MiB: written in {written:.2f} s, verified and loaded in {read:.2f} s"
