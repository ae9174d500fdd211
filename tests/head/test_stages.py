"""Settings by step or epoch: a head whose settings have stages takes the steps of heads that have each stage's numbers."""

import json
from typing import Any

import msgspec
import pytest
import torch
from helpers.ranks import mine
from helpers.runs import assert_same_bits, config_of, curve, trained, whole

from partialfc.config import SGD, AnyLoss, ArcFace, CosFace, CurricularFace, ElasticArcFace, HeadConfig
from partialfc.config.scheduled import value_at
from partialfc.head import PartialFC

CLASSES, WIDTH, BATCH, EPOCH = 23, 6, 12, 3
STEPS = 10
RATES = {0: 0.2, "1 epochs": [0.2, 0.5], "2 epochs": 1.0}
CASES: dict[str, tuple[AnyLoss, dict[str, Any]]] = {
    "sampled, then full": (ElasticArcFace(scale=16.0, margin={0: [0.0, 0.5], 4: 0.5, 7: 0.7}), {"sample_rate": RATES}),
    "decay": (CosFace(), {"sample_rate": RATES, "unsampled": "decay"}),
    "log_rate, bfloat16": (ArcFace(), {"sample_rate": RATES, "logit_correction": "log_q", "centers_dtype": "bfloat16"}),
    "host": (CosFace(), {"sample_rate": {0: 0.2, 5: 0.6}, "memory": "host"}),
    "scale, with a shift and without": (CosFace(scale={0: [16.0, 100.0], 5: 80.0}), {"interclass_threshold": 0.3}),
    "a loss with a state": (CurricularFace(margin={0: 0.1, 5: 0.4}, scale=8.0, ema_rate=0.3), {}),
    "kernels": (CurricularFace(scale={0: [8.0, 16.0], 5: 20.5}), {"sample_rate": RATES, "kernels": "triton"}),
}  # fmt: skip


def head_of(margin: AnyLoss, options: dict[str, Any], device: str, **more: Any) -> PartialFC:
    config, optim = HeadConfig(**options), SGD(lr=0.1, momentum=0.9, weight_decay=1e-2)
    return PartialFC(
        CLASSES, WIDTH, margin, config=config, optim=optim, device=device, dtype=torch.float64, **more
    )


def stepped(head: PartialFC, number: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(number)
    labels = torch.randint(-1, CLASSES, (BATCH,), generator=draws)
    local = mine(torch.randn(BATCH, WIDTH, generator=draws, dtype=torch.float64)).to(device).requires_grad_()
    step = head.prepare(labels, number)
    loss = head(local, step)
    loss.backward()
    head.update(step, 0.1)
    return loss.detach(), local.grad


def held_against_plain_heads(margin: AnyLoss, options: dict[str, Any], device: str) -> int:
    """Steps a head with stages, and from the same state a head of the step's numbers; how many were the same."""
    head, same = head_of(margin, options, device, steps_per_epoch=EPOCH), 0
    for number in range(STEPS):
        now = {
            name: value_at(value, number, EPOCH)
            for name, value in msgspec.structs.asdict(margin).items()
            if isinstance(value, dict)
        }
        rate = value_at(options.get("sample_rate", 1.0), number, EPOCH)
        if options.get("unsampled") == "decay":
            rate = min(rate, 1 - 1e-9)  # which draws all, and keeps what catching up needs
        plain = head_of(msgspec.structs.replace(margin, **now), {**options, "sample_rate": rate}, device)
        plain.load_state_dict({name: it.clone() for name, it in head.state_dict().items()})
        found, expected = stepped(head, number, device), stepped(plain, number, device)
        states = [it.state_dict().values() for it in (head, plain)]
        equal = all(torch.equal(*map(local_part, pair)) for pair in zip(*states, strict=True))
        same += equal and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    return same


def local_part(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_step_has_the_numbers_of_its_stage(ranks, device, case, world_size):
    assert ranks.run(world_size, held_against_plain_heads, *CASES[case], device) == [STEPS] * world_size


def test_epochs_want_their_length():
    with pytest.raises(
        ValueError, match=r"schedule in epochs; expected steps, or PartialFC.*steps_per_epoch"
    ):
        PartialFC(7, 4, CosFace(margin={0: 0.1, "2 epochs": 0.2}))


def test_a_run_resumes_to_the_bit_and_goes_on_at_another_world_size(ranks, pack, tmp_path):
    margin = ElasticArcFace(scale={0: [8.0, 16.0], "2 epochs": 16.0}, margin={0: [0.0, 0.4], "3 epochs": 0.4})
    sections = {
        "head": {"sample_rate": {0: 0.4, "2 epochs": 1.0}, "unsampled": "decay"},
        "train": {"global_batch_size": 24, "length": 14, "micro_batch_size": 4}, "checkpoint": {"every": 5}, "optim": {"lr": 0.002},
    }  # fmt: skip
    config = {
        name: msgspec.structs.replace(config_of(pack, tmp_path / name, **sections), loss=margin)
        for name in ("straight", "resumed", "moved")
    }
    straight = whole(ranks.run(2, trained, config["straight"]))
    reported = [
        it["schedule"]
        for it in map(json.loads, (tmp_path / "straight/metrics.jsonl").read_text().splitlines())
        if "loss" in it
    ]
    assert [it["head.sample_rate"] for it in reported] == [0.4] * 10 + [1.0] * 4
    assert [it["loss.scale"] for it in reported] == pytest.approx(
        [8 + 0.8 * step for step in range(10)] + [16] * 4
    )
    assert ranks.run(2, trained, config["resumed"], 8) == [None] * 2
    assert_same_bits(whole(ranks.run(2, trained, config["resumed"])), straight)
    assert ranks.run(3, trained, config["moved"], 8) == [None] * 3
    ranks.run(1, trained, config["moved"])
    assert curve(tmp_path / "moved") == pytest.approx(curve(tmp_path / "straight"), rel=1e-3)
