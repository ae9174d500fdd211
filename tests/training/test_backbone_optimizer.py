"""Runs with an optimizer of the backbone, and one of the class centers, that are not the usual ones."""

import msgspec
import pytest
import torch
from helpers.runs import assert_refused, assert_same_bits, config_of, trained, whole


def test_a_run_with_any_optimizer_of_torch_resumes_to_the_bit(ranks, pack, tmp_path):
    sections = {
        "optim": {"name": "torch", "optimizer_class": "NAdam", "lr": 0.001},
        "head": {"sample_rate": 0.3, "optim": {"name": "sgd", "lr": 0.02}},
        "train": {"length": 8},
        "checkpoint": {"every": 3},
    }
    straight = ranks.run(2, trained, config_of(pack, tmp_path / "a", **sections))
    assert ranks.run(2, trained, config_of(pack, tmp_path / "b", **sections), 5) == [None] * 2
    assert_same_bits(
        whole(ranks.run(2, trained, config_of(pack, tmp_path / "b", **sections))), whole(straight)
    )
    del sections["head"]["optim"]
    with pytest.raises(
        msgspec.ValidationError, match=r"set head.optim to sgd or adamw for the class centers"
    ):
        config_of(pack, tmp_path / "a", **sections)


def test_class_centres_may_have_a_rule_and_a_rate_of_their_own(ranks, pack, tmp_path):
    """The same rule said twice is the same run; another rate moves the centers, and the backbone by them."""
    said = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
    heads = {
        "as optim": None,
        "said": said,
        "slower": said | {"lr": 1e-9},
        "adamw": {"name": "adamw", "lr": 0.01},
    }
    states = {}
    for name, optim in heads.items():
        sections = {"head": {"sample_rate": 0.3, "optim": optim}, "train": {"length": 4}}
        states[name] = ranks.run(1, trained, config_of(pack, tmp_path / name, **sections))[0]
    assert_same_bits(states["said"], states["as optim"])
    assert not torch.equal(states["slower"]["centers"], states["said"]["centers"])
    assert {"first_moment", "second_moment", "counts"} <= states["adamw"].keys()
    assert_refused(
        ranks,
        1,
        config_of(pack, tmp_path / "adamw", head={"sample_rate": 0.3, "optim": said}, train={"length": 8}),
        "different config: train.length 4 -> 8; head.optim.name adamw -> sgd; ",
    )
