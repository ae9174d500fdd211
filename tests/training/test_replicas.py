"""The replicated network's step: two passes are one graph, summed gradients are DistributedDataParallel's, a step is
torch's.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from partialfc.config import SGD, AdamW, TorchOptimizer
from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.training import backbone_optimizer
from partialfc.training.backbone_optimizer import BackboneOptimizer
from partialfc.training.microbatches import MicroBatchRunner
from partialfc.training.replicas import GradientBuckets, ModelEMA, RunningStats

DEVICE = torch.device("cpu")


def network(dropout: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.PReLU(4), nn.Dropout(dropout), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 3 * 3, 6), nn.BatchNorm1d(6)).to(dtype)


def inputs_of(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images, and the gradient that comes back from the outputs."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 8, 8, dtype=dtype, generator=generator)
    return images, torch.randn(batch, 6, dtype=dtype, generator=generator)


def one_step(batch: int, micro_batch: int | None, dropout: float = 0.3) -> dict[str, Tensor]:
    """Outputs of the global batch, summed gradients and running statistics after one step on this rank."""
    dist_ctx = comm.create_dist_context(DEVICE)
    module = network(dropout, torch.float64)
    statistics = RunningStats(module)
    gradients = GradientBuckets(module.parameters(), dist_ctx.group)
    micro_batches = MicroBatchRunner(
        module, module, gradients, micro_batch_size=micro_batch, seed=3, rank=dist_ctx.rank
    )
    images, gradient = (
        part.chunk(dist_ctx.world_size)[dist_ctx.rank] for part in inputs_of(batch, torch.float64)
    )
    kept = statistics.clone()
    outputs = micro_batches.forward(images, 5)
    statistics.start_average(kept, dist_ctx.group)
    micro_batches.backward(images, 5, gradient)
    statistics.finish_average(kept, dist_ctx.group)
    result = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    result |= {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return result | {"outputs": comm.all_gather_rows(outputs.detach(), dist_ctx.group)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def in_one_graph(batch: int, micro_batch: int) -> dict[str, Tensor]:
    """The micro-batches of a whole batch in one graph, without dropout: torch alone."""
    module = network(0.0, torch.float64)
    images, gradient = inputs_of(batch, torch.float64)
    parts, statistics = [], []
    for part in images.split(micro_batch):
        fresh = copy.deepcopy(module)
        parts.append(torch.func.functional_call(fresh, dict(module.named_parameters()), (part,)))
        statistics.append({name: it for name, it in fresh.named_buffers() if it.is_floating_point()})
    outputs = torch.cat(parts)
    outputs.backward(gradient)
    result = {name: parameter.grad for name, parameter in module.named_parameters()}
    result |= {name: torch.stack([one[name] for one in statistics]).mean(0) for name in statistics[0]}
    return result | {"outputs": outputs.detach()}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_two_passes_are_one_graph(ranks, count):
    found = ranks.run(1, one_step, 16, 16 // count, 0.0)[0]
    assert_close(found, in_one_graph(16, 16 // count))


def test_two_passes_on_one_rank_are_one_pass_on_several(ranks):
    expected = ranks.run(4, one_step, 16, 4)  # each rank one micro-batch, one graph
    for world_size in (1, 2):  # 4 and 2 micro-batches, two passes
        for found in ranks.run(world_size, one_step, 16, 4):
            assert_close(found, expected[0])
    assert all(torch.equal(value, rank[name]) for rank in expected for name, value in expected[0].items())


def test_the_whole_block_is_one_micro_batch_where_no_size_is_given(ranks):
    found, expected = ranks.run(1, one_step, 8, None)[0], ranks.run(1, one_step, 8, 8)[0]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.allclose(
        found["outputs"], ranks.run(1, one_step, 8, 8, 0.0)[0]["outputs"]
    )  # dropout was at work


def sums_beside_ddps() -> None:
    dist_ctx = comm.create_dist_context(DEVICE)
    ours = network(0.0)
    theirs = DistributedDataParallel(copy.deepcopy(ours))
    gradients = GradientBuckets(ours.parameters(), dist_ctx.group)
    for step in range(3):
        images, _ = inputs_of(4 * (dist_ctx.rank + 1) + step)
        gradients.zero()
        with gradients.all_reduce_on_exit():
            ours(images).square().sum().backward()
        theirs.zero_grad()
        theirs(images).square().sum().backward()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad * dist_ctx.world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_summed_gradients_are_those_of_distributed_data_parallel(ranks, world_size):
    ranks.run(world_size, sums_beside_ddps)


def overflow_on_one_rank(precision: str) -> list[Tensor]:
    """Five steps of which rank 1 spoils the third; parameters, momenta and loss scale after each."""
    dist_ctx = comm.create_dist_context(DEVICE)
    backbone = network(0.0)
    optimizer = BackboneOptimizer(backbone, SGD(lr=0.1, max_grad_norm=0.5, precision=precision), dist_ctx)
    after = []
    for step in range(5):
        images, _ = inputs_of(6)
        optimizer.gradients.zero()
        with optimizer.gradients.all_reduce_on_exit():
            loss = backbone(images).square().sum()
            spoilt = loss * torch.inf if step == 2 and dist_ctx.rank == 1 else loss
            (spoilt * optimizer.loss_scale.value).backward()
        optimizer.step(0.1, loss.detach())
        state = [*backbone.parameters(), *(it["momentum_buffer"] for it in optimizer.state.values())]
        after.append(torch.cat([tensor.detach().flatten() for tensor in state]))
    return [*after, optimizer.loss_scale.value.clone()]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks, precision):
    results = ranks.run(2, overflow_on_one_rank, precision)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    steps, scale = results[0][:-1], results[0][-1]
    assert torch.equal(steps[1], steps[2])
    assert not torch.equal(steps[0], steps[1]) and not torch.equal(steps[2], steps[3])
    assert all(state.isfinite().all() for state in steps)
    assert scale == (2.0**15 if precision == "float16" else 1.0)


def steps_beside_torchs(clip: float) -> None:
    dist_ctx = comm.create_dist_context(DEVICE)
    ours = network(0.0)
    theirs = copy.deepcopy(ours)
    optimizer = BackboneOptimizer(ours, SGD(max_grad_norm=clip), dist_ctx)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(4):
        images, _ = inputs_of(6 + step)
        optimizer.gradients.zero()
        with optimizer.gradients.all_reduce_on_exit():
            loss = ours(images).square().sum()
            loss.backward()
        norm, finite = optimizer.step(0.1 / (step + 1), loss.detach())
        reference.zero_grad()
        theirs(images).square().sum().backward()
        reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs.parameters(), clip or torch.inf))
        reference.step()
        assert finite
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_a_step_is_torchs_sgd_with_clipping(ranks, clip):
    ranks.run(1, steps_beside_torchs, clip)


KINDS = {
    "NAdam": {"betas": (0.8, 0.95)},  # which keeps a product that is not 0 at first
    "RAdam": {},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "RMSprop": {"momentum": 0.5},
}


def any_optimizer_beside_itself(kind: str, skipped: tuple[int, ...]) -> None:
    """Some steps are not finite: torch's own optimizer does not take them."""
    dist_ctx = comm.create_dist_context(DEVICE)
    ours = network(0.0)
    theirs = copy.deepcopy(ours)
    config = TorchOptimizer(
        optimizer_class=kind, weight_decay=0.01, max_grad_norm=0, kwargs=KINDS[kind], precision="float16"
    )
    optimizer = BackboneOptimizer(ours, config, dist_ctx)
    reference = getattr(torch.optim, kind)(theirs.parameters(), lr=0.1, weight_decay=0.01, **KINDS[kind])
    for step in range(5):
        images, _ = inputs_of(6 + step)
        optimizer.gradients.zero()
        with optimizer.gradients.all_reduce_on_exit():
            loss = ours(images).square().sum()
            (loss * optimizer.loss_scale.value * (torch.inf if step in skipped else 1)).backward()
        _, finite = optimizer.step(0.01, loss.detach())
        assert finite == (step not in skipped)
        reference.zero_grad()
        theirs(images).square().sum().backward()
        reference.param_groups[0]["lr"] = 0.01
        if step not in skipped:
            reference.step()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("skipped", [(), (0, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_optimizer_of_torch_takes_steps_and_takes_them_back(ranks, kind, skipped):
    ranks.run(1, any_optimizer_beside_itself, kind, skipped)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TorchOptimizer(optimizer_class="Nadam"),
            "optim.optimizer_class: 'Nadam', expected a class of torch.optim, such as NAdam",
        ),
        (TorchOptimizer(optimizer_class="LBFGS"), "optim.optimizer_class: 'LBFGS', expected"),
        (TorchOptimizer(optimizer_class="NAdam", kwargs={"beta": 0.9}), "optim: torch.optim.NAdam: .*'beta'"),
    ],
)
def test_what_torch_has_no_optimizer_for_is_refused(config, message):
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match=message):
        backbone_optimizer._build_optimizer(config, [parameter], [1.0])


def test_statistics_of_a_step_that_is_not_finite_are_taken_back():
    backbone = network(0.0)
    statistics = RunningStats(backbone)
    kept = statistics.clone()
    backbone(torch.full((4, 3, 8, 8), torch.nan))
    assert backbone[1].running_mean.isnan().all()
    statistics.restore_unless(torch.tensor(False), kept)
    assert (backbone[1].running_mean == 0).all() and (backbone[6].running_var == 1).all()


def decayed_only(decayed: str) -> dict[str, bool]:
    """Which parameters shrink in a step without a gradient."""
    dist_ctx = comm.create_dist_context(DEVICE)
    backbone = network(0.0)
    before = {name: it.detach().clone().abs().sum() for name, it in backbone.named_parameters()}
    optimizer = BackboneOptimizer(backbone, AdamW(weight_decay=0.5, weight_decay_on=decayed), dist_ctx)
    optimizer.gradients.zero()
    optimizer.step(0.1, torch.zeros(()))
    return {
        name: bool(it.abs().sum() < before[name]) for name, it in backbone.named_parameters() if before[name]
    }


def test_norms_biases_and_slopes_need_not_decay(ranks):
    (everything,) = ranks.run(1, decayed_only, "all")
    (some,) = ranks.run(1, decayed_only, "matrices")
    shapes = {name: it.ndim for name, it in network(0.0).named_parameters()}
    assert all(everything.values()) and 1 in {shapes[name] for name in some}
    assert some == {name: shapes[name] > 1 for name in some}


def averages_beside_torchs() -> None:
    """Of a network that trains on; the third step is not taken. Each rank has images of its own."""
    dist_ctx, taken = comm.create_dist_context(DEVICE), 0
    ours, decay = network(0.0, torch.float64), 0.3
    statistics = RunningStats(ours)
    average = ModelEMA(ours, network(0.0, torch.float64), decay)
    theirs = AveragedModel(ours, avg_fn=lambda old, new, _: old + (1 - now) * (new - old), use_buffers=True)
    theirs.update_parameters(ours)  # the first call copies
    for step in range(6):
        kept = statistics.clone()
        ours(inputs_of(8, torch.float64)[0] * (dist_ctx.rank + 1))
        statistics.start_average(kept, dist_ctx.group)
        statistics.finish_average(kept, dist_ctx.group)
        for parameter in ours.parameters():
            parameter.data.add_(step)
        average.update(step, torch.tensor(step != 2))
        now = min(decay, (1 + step) / (10 + step))
        if step != 2:
            taken += now < decay
            theirs.update_parameters(ours)
    assert taken == 2  # steps 0 and 1
    expected = dict(theirs.module.named_parameters())
    for name, tensor in average.network.named_parameters():
        torch.testing.assert_close(tensor, expected[name].detach())
    for name, tensor in average.network.named_buffers():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs.module.get_buffer(name))
            assert (
                len({it.numpy().tobytes() for it in comm.all_gather_object(tensor, dist_ctx.host_group)}) == 1
            )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_moving_average_is_torchs_with_a_warm_up(ranks, world_size):
    ranks.run(world_size, averages_beside_torchs)
