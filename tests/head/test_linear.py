"""The softmax of a linear layer, sharded, is torch's on one process, however large its logits are."""

from typing import Any

import msgspec
import pytest
import torch
from helpers.runs import config_of
from stateful import CLASSES, WIDTH, State, assert_equal, dense, sharded
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, linear

from partialfc.config import FollowTeacher, HeadConfig, LinearSoftmax
from partialfc.errors import InputError
from partialfc.head import PartialFC

SAMPLED = {"sample_rate": 0.4}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"logits_budget": 0},
    SAMPLED,
    SAMPLED | {"memory": "host"},
    SAMPLED | {"kernels": "triton"},
]


def formula(
    embeddings: Tensor, weight: Tensor, labels: Tensor, active: Tensor, state: State
) -> tuple[Tensor, State]:
    valid = labels >= 0
    logits = linear(embeddings[valid], weight[:, :-1], weight[:, -1])
    return cross_entropy(logits.masked_fill(~active, -torch.inf), labels[valid]), state


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sharded_is_dense(ranks, device, options, world_size):
    expected = dense(formula, {}, options.get("sample_rate", 1), device, width=WIDTH + 1)
    assert_equal(ranks.run(world_size, sharded, LinearSoftmax(), options, device), expected)


def test_logits_of_any_size_have_a_loss(device):
    head = PartialFC(3, 2, LinearSoftmax(), device=device)
    rows = torch.tensor([[1e4, 0.0, 5.0], [0.0, 1e4, -5.0], [-1e4, 0.0, 0.0]], device=device)
    head.load_state_dict(head.state_dict() | {"centers": rows})
    embeddings = torch.tensor([[1.0, 0.999], [-0.5, 2.0]], device=device).requires_grad_()
    step = head.prepare(torch.tensor([1, 0]), 0)
    loss = head(embeddings, step)
    expected = cross_entropy(embeddings @ rows[:, :2].T + rows[:, 2], torch.tensor([1, 0], device=device))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    observed = head.observe(step)
    torch.testing.assert_close(observed.target, cosine_similarity(embeddings.detach(), rows[[1, 0], :2]))
    head.update(step, 0.1)
    assert embeddings.grad.isfinite().all() and head.state_dict()["centers"].isfinite().all()


def test_what_wants_cosines_is_refused(tmp_path):
    for head, message in (
        ({"subcenters": 2}, r"head\.subcenters: 2; expected 1, as loss\.name: linear has no cosines"),
        ({"interclass_threshold": 0.4}, r"head\.interclass_threshold: 0\.4; expected 0"),
    ):
        with pytest.raises(InputError, match=message):
            PartialFC(CLASSES, WIDTH, LinearSoftmax(), config=HeadConfig(**head))
    with pytest.raises(InputError, match="no cosines, which class centers that follow a teacher require"):
        PartialFC(CLASSES, WIDTH, LinearSoftmax(), optim=FollowTeacher())
    with pytest.raises(
        msgspec.ValidationError, match=r"Object contains unknown field `margin` - at `\$\.loss`"
    ):
        config_of(tmp_path, tmp_path, loss={"name": "linear"})
