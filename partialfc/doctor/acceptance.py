"""Checks of new machines, in addition to those of a recipe: repeatability, and the throughput of head and loader."""

import time
from collections.abc import Callable

import torch

from partialfc.config import SGD, Config, CosFace, HeadConfig
from partialfc.doctor.result import CheckResult
from partialfc.doctor.trial import trial_run
from partialfc.head import PartialFC
from partialfc.runtime import comm
from partialfc.runtime.checkpoint.state_snapshot import flatten_state
from partialfc.runtime.comm import DistContext
from partialfc.runtime.dtensors import local_rows_and_offset
from partialfc.training.health import tensor_digests
from partialfc.training.loop import train_step

_REPEATED_STEPS = 10
_IDENTITIES = {"cuda": 1_000_000, "cpu": 50_000}
_WIDTH, _RATE, _IMAGES = 512, 0.1, 128  # images of a rank
_WARM_UP_STEPS = 3
_SECONDS = 10.0  # of each measurement


def check_repeatability(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Run the first steps of the recipe twice: the bits of all tensors must be equal."""
    steps, digests = 0, []
    for _ in range(2):
        with trial_run(config, dist_ctx) as run:
            steps = min(_REPEATED_STEPS, run.total_steps)
            for batch in run.loader.batches(0, steps):
                train_step(run, batch, run.head.prepare(batch.labels, run.step))
                run.step += 1
            state = flatten_state(run.state())
            digests.append(tensor_digests({name: local_rows_and_offset(it)[0] for name, it in state.items()}))
    equal = comm.all_gather_object(digests[0] == digests[1], dist_ctx.host_group)
    if all(equal):
        return CheckResult([f"{steps} steps twice: bitwise identical on all ranks"])
    differing = ", ".join(str(rank) for rank, same in enumerate(equal) if not same)
    return CheckResult(
        [],
        [
            f"{steps} steps twice: different on rank(s) {differing}; expected identical bits; try deterministic: true"
        ],
    )


def measure_head(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Measure a step of a head of fixed size, the same for all recipes: forward, backward and update."""
    identities, batch = _IDENTITIES[dist_ctx.device.type], _IMAGES * dist_ctx.world_size
    head = PartialFC(
        identities,
        _WIDTH,
        CosFace(),
        config=HeadConfig(sample_rate=_RATE),
        optim=SGD(),
        device=dist_ctx.device,
        group=dist_ctx.group,
    )
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(identities, (batch,), generator=generator)
    embeddings = torch.randn(_IMAGES, _WIDTH, device=dist_ctx.device)
    prepared = head.prepare(labels, 0)

    def step(number: int) -> None:
        nonlocal prepared
        current, prepared = prepared, head.prepare(labels, number + 1)
        head(embeddings.clone().requires_grad_(), current).backward()
        head.update(current, 0.1)

    milliseconds = 1000 / _rate(step, dist_ctx)
    line = f"{identities:,} identities, r = {_RATE}, {_IMAGES} images per rank: {milliseconds:.2f} ms per step of the head"
    return CheckResult([line], values={"identities": identities, "head_step_ms": milliseconds})


def measure_loader(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Measure how many images per second the data workers of all ranks deliver, while nothing is trained."""
    with trial_run(config, dist_ctx) as run:
        batches = run.loader.batches(0, run.total_steps)
        steps = run.total_steps - _WARM_UP_STEPS
        if steps < 1:
            return CheckResult(["train.length: too short to measure"])
        speed = config.train.global_batch_size * _rate(lambda _: next(batches), dist_ctx, most=steps)
        batches.close()
    line = f"{speed:.0f} images/s from {config.data.num_workers} data worker(s) per rank"
    return CheckResult([line], values={"loader_images_per_second": speed})


def _rate(step: Callable[[int], object], dist_ctx: DistContext, most: int = 200) -> float:
    """Return the calls per second of the slowest rank, after some calls to warm up. Every rank makes as many."""
    began, calls = 0.0, 0
    for number in range(_WARM_UP_STEPS + most):
        if number == _WARM_UP_STEPS:
            _synchronize(dist_ctx)
            began = time.perf_counter()
        step(number)
        calls = number + 1 - _WARM_UP_STEPS
        if number % 10 == 9 and _agree(began > 0 and time.perf_counter() - began > _SECONDS, dist_ctx):
            break
    _synchronize(dist_ctx)
    return calls / max(comm.all_gather_object(time.perf_counter() - began, dist_ctx.host_group))


def _synchronize(dist_ctx: DistContext) -> None:
    if dist_ctx.device.type == "cuda":
        torch.cuda.synchronize(dist_ctx.device)
    comm.barrier(dist_ctx.host_group)


def _agree(value: bool, dist_ctx: DistContext) -> bool:
    """Return the value of rank 0, on all ranks."""
    return comm.broadcast_object(value, dist_ctx.host_group)
