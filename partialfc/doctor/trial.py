"""What a run does, tried for a moment: the head, the pack, the output's folder, some steps, a checkpoint."""

import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.distributed import ProcessGroup

from partialfc.config import AnyMargin, Config, CosFace, HeadConfig, Sgd
from partialfc.data import RecordDataset, synthetic
from partialfc.doctor.result import Finding
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.head.kernels.torch_centers import CENTERS
from partialfc.head.losses import LossInputs, MarginLoss, build_loss
from partialfc.head.reference import dense_loss
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint import Checkpoints
from partialfc.runtime.comm import CollectiveInputError, Ranks
from partialfc.runtime.process.run_lock import occupied
from partialfc.training.loop import train_step
from partialfc.training.run import Run, build_run

_CLASSES, _WIDTH, _BATCH = 1009, 64, 32  # of a small head; the classes do not divide
_SCALE, _MARGIN = 16.0, 0.2
_CLOSE = 1e-4
_CLOSE_DERIVATIVE = 1e-5  # of float32 settings, in double precision
_READ = 256  # images of the pack
_FEW, _MOST, _PATIENCE = (
    3,
    20,
    20.0,
)  # steps at least and at most, and the seconds after which there are no more


def loss(config: Config, ranks: Ranks) -> Finding:
    """Compare derivatives of the recipe's loss with autograd of its logit, and its head over all ranks with itself on one."""
    settings = config.loss
    lines: list[str] = []
    problems: list[str] = []
    if getattr(settings, "gradient", "exact") == "detached":
        lines.append("the derivative of the logit is taken as 1, as loss.gradient: detached says")
    else:
        worst = max(_off_derivatives(settings))
        told = f"derivatives of the target's logit are autograd's to {worst:.0e}"
        (lines if worst < _CLOSE_DERIVATIVE else problems).append(told)
    with comm.alone(ranks) as alone:
        off = max(comm.of_all_ranks(_off_one_rank(config, ranks, alone), ranks.host))
    told = f"the recipe's loss and sampling give on {ranks.size} rank(s) what they give on one, to {off:.0e}"
    (lines if off < _CLOSE else problems).append(told)
    return Finding(lines, problems)


def _off_derivatives(settings: AnyMargin) -> Iterator[float]:
    """Yield the largest difference of a loss's derivatives, by cosine and maybe by norm, from those of autograd."""
    loss = build_loss(settings, steps_per_epoch=1)
    if not loss.on_sphere:  # of a linear layer, whose logit is no function of the angle
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


def _off_one_rank(config: Config, ranks: Ranks, alone: ProcessGroup) -> float:
    """Return the largest relative difference of loss and gradient between the recipe's head over all ranks and on one."""
    share = -(-_BATCH // ranks.size)
    draws = torch.Generator().manual_seed(0)
    everyones = torch.randn(share * ranks.size, _WIDTH, generator=draws)
    labels = torch.randint(_CLASSES, (len(everyones),), generator=draws)
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    settings = msgspec.structs.replace(
        config.head, memory="device", matmul_precision="float32", kernels="torch", optim=None
    )
    found = []
    for group, images in ((ranks.group, mine), (alone, slice(None))):
        tried = PartialFC(
            _CLASSES, _WIDTH, config.loss, config=settings, optim=config.rows_rule, device=ranks.device, group=group,
            steps_per_epoch=1,
        )  # fmt: skip
        local = everyones[images].to(ranks.device).requires_grad_()
        loss = tried(local, tried.prepare(labels, 0))
        loss.backward()
        assert local.grad is not None
        gradient = local.grad if group is ranks.group else local.grad[mine]
        found.append((loss.detach(), gradient))
    (one, by_one), (all_, by_all) = found
    return max(
        float((one - all_).abs() / all_.abs()), float((by_one - by_all).abs().max() / by_all.abs().max())
    )


def head(config: Config, ranks: Ranks) -> Finding:
    """Loss and gradient of a small head, split across the ranks, against the dense formula in double precision."""
    share = -(-_BATCH // ranks.size)
    draws = torch.Generator().manual_seed(0)
    everyones = torch.randn(share * ranks.size, _WIDTH, generator=draws)
    labels = torch.randint(_CLASSES, (len(everyones),), generator=draws)
    margin = CosFace(scale=_SCALE, margin=_MARGIN)
    tried = PartialFC(
        _CLASSES, _WIDTH, margin, config=HeadConfig(matmul_precision="float32"), optim=Sgd(), device=ranks.device, group=ranks.group,
    )  # fmt: skip
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    local = everyones[mine].to(ranks.device).requires_grad_()
    loss = tried(local, tried.prepare(labels, 0))
    loss.backward()
    assert local.grad is not None
    own = dtensors.row_range(tried.state_dict()[CENTERS])[0].cpu().numpy()
    whole = torch.from_numpy(np.concatenate(comm.of_all_ranks(own, ranks.host))).double()
    dense = everyones.double().requires_grad_()
    expected = dense_loss(dense, whole, labels, margin, active=torch.ones(_CLASSES, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(expected, dense)
    off = abs(loss.item() - expected.item()) / expected.item()
    gradient_off = float((local.grad.cpu() - gradient[mine]).abs().max() / gradient.abs().max())
    worst = [max(it) for it in zip(*comm.of_all_ranks((off, gradient_off), ranks.host), strict=True)]
    said = f"sharded equals dense: loss to {worst[0]:.0e}, gradient to {worst[1]:.0e}"
    return (
        Finding([said]) if max(worst) < _CLOSE else Finding([], [f"not what the dense formula gives: {said}"])
    )


def pack(config: Config, ranks: Ranks) -> Finding:
    """Some images of the pack, at random, read by each rank."""
    folder = Path(config.data.path)
    with comm.fail_on_all_ranks(ranks):
        if config.data.synthetic is not None:
            synthetic.ensure(folder, config.data.synthetic)
        dataset = RecordDataset(folder, config.backbone.input_size, reader=config.data.reader)
    chosen = np.random.default_rng(ranks.rank).integers(len(dataset), size=min(_READ, len(dataset)))
    began, damaged = time.perf_counter(), []
    for index in chosen:
        try:
            _ = dataset[int(index)]
        except InputError as error:
            damaged.append(str(error))
    taken = time.perf_counter() - began
    found = comm.of_all_ranks((len(chosen) / taken, damaged), ranks.host)
    slowest = min(speed for speed, _ in found)
    counts = f"{len(dataset)} images of {dataset.num_classes} identities"
    lines = [
        f"{folder}: {counts}; {len(chosen)} read at random, {slowest:.0f} images/s by one process at least"
    ]
    problems = [told for _, every in found for told in every]
    if problems and config.data.on_corrupt == "skip":
        return Finding([*lines, f"{len(problems)} cannot be read; others will take their place"])
    return Finding(lines, problems)


def output(config: Config, ranks: Ranks) -> Finding:
    """Whether every rank sees the folder of the run, and no other run is at work there."""
    with occupied(Path(config.output), ranks):
        return Finding([f"{config.output}: all ranks see it, and no other run is at work there"])


def steps(config: Config, ranks: Ranks) -> Finding:
    """Some steps of the run itself, and its checkpoint, in a folder of its own, which is gone afterwards."""
    folder = Path(config.output, ".doctor")
    with comm.fail_on_all_ranks(ranks):
        run = build_run(msgspec.structs.replace(config, output=str(folder)), ranks)
    try:
        lines = [_speed(run), _saved_and_read(run, folder)]
    except CollectiveInputError:
        _removed(folder, ranks)
        raise
    _removed(folder, ranks)
    return Finding(lines)


def _removed(folder: Path, ranks: Ranks) -> None:
    """Called by all ranks: one that meets a defect ends at once, and waits for nobody."""
    comm.barrier(ranks.host)
    if ranks.first:
        shutil.rmtree(folder, ignore_errors=True)


def _speed(run: Run) -> str:
    taken, seconds = _taken(run)
    if not taken:
        return "train.length: no steps to be tried"
    speed = taken * run.config.train.global_batch_size / seconds
    whole = timedelta(seconds=round(seconds / taken * run.last_step))
    return f"{taken} steps: {speed:.0f} images/s; the run's {run.last_step} steps take {whole}, evaluations apart"


def _taken(run: Run) -> tuple[int, float]:
    """How many steps were taken, and their seconds on the first rank; without the first two, which are slower."""
    began = time.perf_counter()
    first, taken = began, 0
    for batch in run.loader.batches(0, min(_MOST, run.last_step)):
        train_step(run, batch, run.head.prepare(batch.labels, run.step))
        run.step += 1
        if run.ranks.device.type == "cuda":
            torch.cuda.synchronize(run.ranks.device)
        if run.step == min(2, run.last_step - 1):
            first = time.perf_counter()
        taken = run.step - min(2, run.last_step - 1)
        enough = taken >= _FEW and time.perf_counter() - began > _PATIENCE
        if comm.of_first_rank(enough, run.ranks.host):
            break
    return taken, comm.of_first_rank(time.perf_counter() - first, run.ranks.host)


def _saved_and_read(run: Run, folder: Path) -> str:
    """Saves the run, verifies what was written, and reads it back."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, ranks=run.ranks)
    began = time.perf_counter()
    streamed = {f"head.{name}": rows for name, rows in run.head.snapshot().items()}
    checkpoints.save(run.step, run.state(), {}, seconds=0.0, streamed=streamed)
    outcome = checkpoints.wait()
    comm.raise_first(outcome.problem if outcome else None, run.ranks)
    written = time.perf_counter() - began
    found = checkpoints.to_resume("auto")
    assert found is not None, "it was saved"
    run.restore(checkpoints, found)
    read = time.perf_counter() - began - written
    size = comm.of_first_rank(sum(it.stat().st_size for it in found.path.iterdir()) / 2**20, run.ranks.host)
    return (
        f"a checkpoint of {size:.1f} MiB: written in {written:.2f} s, verified and read back in {read:.2f} s"
    )
