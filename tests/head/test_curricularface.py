"""CurricularFace, sharded, is the formula of its paper on one process; its level is saved, and is of the global batch."""

import msgspec
import pytest
import torch
from helpers.reference import target_logit
from helpers.runs import assert_same_bits, config_of, curve, trained, whole
from stateful import State, assert_equal, dense, sharded
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partialfc.config import ArcFace, CurricularFace
from partialfc.head.losses import build_loss
from partialfc.head.losses.base import LossInputs

RATE = 0.3


def formula_of(margin: CurricularFace, threshold: float):
    def formula(
        embeddings: Tensor, weight: Tensor, labels: Tensor, active: Tensor, state: State
    ) -> tuple[Tensor, State]:
        valid = labels >= 0
        cosine = normalize(embeddings)[valid] @ normalize(weight).T
        own = cosine.gather(1, labels[valid][:, None])[:, 0]
        level = (1 - margin.ema_rate) * state["level"] + margin.ema_rate * own.detach().mean()
        hard = cosine > (own.acos() + margin.margin).cos()[:, None].detach()
        logits = torch.where(hard, cosine * (level + cosine), cosine)
        if threshold:
            logits = logits.masked_fill(cosine > threshold, -torch.inf)
        target = target_logit(ArcFace(margin=margin.margin), own, None)
        logits = logits.masked_fill(~active, -torch.inf).scatter(1, labels[valid][:, None], target[:, None])
        return cross_entropy(margin.scale * logits, labels[valid]), {"level": level}

    return formula


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("scale", "options"),
    [
        (8.0, {}),
        (8.0, {"sample_rate": 0.4, "interclass_threshold": 0.6}),
        (64.0, {"sample_rate": 0.4, "logits_budget": 0}),
        (100.0, {}),
        (8.0, {"sample_rate": 0.4, "kernels": "triton", "interclass_threshold": 0.6}),
        (64.0, {"kernels": "triton"}),
    ],
    ids=str,
)
def test_sharded_is_dense(ranks, device, scale, options, world_size):
    margin = CurricularFace(scale=scale, ema_rate=RATE)
    formula = formula_of(margin, options.get("interclass_threshold", 0.0))
    start = {"level": torch.zeros((), dtype=torch.float64)}
    expected = dense(formula, start, options.get("sample_rate", 1), device)
    assert abs(expected.state["level"]) > 0.01
    assert_equal(ranks.run(world_size, sharded, margin, options, device), expected)


def test_a_negative_is_hard_above_the_targets_cosine_with_its_margin():
    loss = build_loss(CurricularFace())
    cosines = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64)
    batch = LossInputs(torch.ones(3, dtype=torch.bool), torch.tensor(3.0), None, cosines, None)
    hard = loss.with_state({"level": torch.tensor(0.2)}).hard_negative_rule(batch)
    assert hard.level == torch.tensor(0.2)
    torch.testing.assert_close(hard.logit_threshold, 64 * (cosines.acos() + 0.5).cos())
    state = loss.next_state(batch)
    torch.testing.assert_close(state["level"], torch.tensor(0.01 * 0.5 / 3))


def test_a_run_resumes_to_the_bit_and_goes_on_at_another_world_size(ranks, pack, tmp_path):
    sections = {"train": {"global_batch_size": 24, "length": 14, "micro_batch_size": 4}, "checkpoint": {"every": 5}, "optim": {"lr": 0.002}}  # fmt: skip
    config = {
        name: msgspec.structs.replace(
            config_of(pack, tmp_path / name, **sections), loss=CurricularFace(scale=16.0, margin=0.3)
        )
        for name in ("straight", "resumed", "moved")
    }
    straight = whole(ranks.run(2, trained, config["straight"]))
    assert ranks.run(2, trained, config["resumed"], 8) == [None] * 2
    assert_same_bits(whole(ranks.run(2, trained, config["resumed"])), straight)
    assert straight["loss_level"] != 0
    assert ranks.run(3, trained, config["moved"], 8) == [None] * 3
    ranks.run(1, trained, config["moved"])
    assert curve(tmp_path / "moved") == pytest.approx(curve(tmp_path / "straight"), rel=1e-3)
