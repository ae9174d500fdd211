"""A backbone that stands still at first, and rates that fall from block to block."""

import msgspec
import numpy as np
import pytest
import torch
from helpers.runs import assert_refused, config_of, curve, trained

import partialfc
from partialfc.backbones import build_backbone
from partialfc.config import SGD, AdamW, IResNetTiny
from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.training.backbone_optimizer import BackboneOptimizer


def tuned(pack, output, source, freeze: int, length: int = 8, **sections):
    return config_of(
        pack, output, init={"backbone": str(source), "freeze_backbone": freeze},
        train={"length": length, "micro_batch_size": 12}, **sections,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(ranks, pack, tmp_path_factory):
    output = tmp_path_factory.mktemp("source")
    ranks.run(1, trained, config_of(pack, output, train={"length": 4}))
    return output


@pytest.mark.parametrize("optim", [SGD(lr=0.02), AdamW(lr=0.01)], ids=["sgd", "adamw"])
def test_a_frozen_backbone_stands_still_and_the_centres_move(ranks, pack, source, tmp_path, optim):
    config = msgspec.structs.replace(tuned(pack, tmp_path / "run", source, 8), optim=optim)
    (state,) = ranks.run(1, trained, config)
    for name, tensor in partialfc.load(source).network.state_dict().items():
        assert torch.equal(state[name], tensor), name
    losses = curve(tmp_path / "run")
    assert losses[-1] < losses[0]


def test_afterwards_it_moves(ranks, pack, source, tmp_path):
    (state,) = ranks.run(1, trained, tuned(pack, tmp_path / "run", source, 4))
    network = partialfc.load(source).network.state_dict()
    assert not torch.equal(state["fc.weight"], network["fc.weight"])
    assert not torch.equal(state["bn1.running_mean"], network["bn1.running_mean"])


def test_a_frozen_start_is_the_same_at_any_world_size_and_after_a_stop(ranks, pack, source, tmp_path):
    for world_size in (1, 2):
        ranks.run(world_size, trained, tuned(pack, tmp_path / f"W{world_size}", source, 4))
    np.testing.assert_allclose(curve(tmp_path / "W1"), curve(tmp_path / "W2"), rtol=1e-4)
    stopped = tuned(pack, tmp_path / "stopped", source, 4, checkpoint={"every": 2})
    ranks.run(1, trained, stopped, 3)
    ranks.run(1, trained, stopped)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "W1")


def test_how_long_it_stands_still_belongs_to_the_run(ranks, pack, source, tmp_path):
    ranks.run(1, trained, tuned(pack, tmp_path / "run", source, 4, length=6))
    assert_refused(
        ranks, 1, tuned(pack, tmp_path / "run", source, 5, length=6), "init.freeze_backbone 4 -> 5"
    )


def rates() -> dict[str, float]:
    backbone = build_backbone(IResNetTiny(depths=(1, 2), width=4, input_size=32, embedding_size=8))
    settings = SGD(lr=1.0, momentum=0, weight_decay=0, max_grad_norm=0, layer_decay=0.5)
    optimizer = BackboneOptimizer(backbone, settings, comm.create_dist_context(torch.device("cpu")))
    before = {name: it.detach().clone() for name, it in backbone.named_parameters()}
    for it in backbone.parameters():
        if it.requires_grad:
            it.grad.fill_(1.0)
    optimizer.step(1.0, torch.zeros(()))
    return {name: float((before[name] - it).mean()) for name, it in backbone.named_parameters()}


def test_rates_fall_from_block_to_block(ranks):
    (found,) = ranks.run(1, rates)
    assert found["fc.weight"] == found["bn2.weight"] == pytest.approx(1)
    assert found["layer2.1.conv1.weight"] == pytest.approx(0.5)
    assert found["layer2.0.conv1.weight"] == pytest.approx(0.25)
    assert found["layer1.0.conv1.weight"] == pytest.approx(0.125)
    assert found["conv1.weight"] == found["prelu.weight"] == pytest.approx(0.0625)


def of_others() -> str:
    try:
        BackboneOptimizer(
            torch.nn.Linear(4, 4), SGD(layer_decay=0.5), comm.create_dist_context(torch.device("cpu"))
        )
    except InputError as error:
        return str(error)
    return ""


def test_networks_without_known_blocks_have_one_rate(ranks):
    (told,) = ranks.run(1, of_others)
    assert told.startswith("optim.layer_decay: not supported for external backbones")
