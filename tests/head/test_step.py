"""A step knows where it stands: a wrong order is refused, and what does not belong to training leaves it as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor

from partialfc.config import CosFace, ElasticArcFace, HeadConfig
from partialfc.head import HeadStep, PartialFC

CLASSES, WIDTH = 30, 5
OPTIONS: list[dict[str, Any]] = [
    {},
    {"sample_rate": 0.3},
    {"sample_rate": 0.3, "memory": "host"},
    {"sample_rate": 0.3, "unsampled": "decay"},
    {"sample_rate": 0.3, "logits_budget": 0},
]


def new_head(device: str, **options: Any) -> PartialFC:
    margin = ElasticArcFace(sigma=0.1, order="paper", scale=8.0)
    return PartialFC(CLASSES, WIDTH, margin, config=HeadConfig(**options), device=device)


def batch(number: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    embeddings = torch.randn(4, WIDTH, generator=generator)
    return embeddings.to(device).requires_grad_(), torch.randint(CLASSES, (4,), generator=generator)


def prepared(head: PartialFC, number: int, device: str) -> tuple[Tensor, HeadStep]:
    embeddings, labels = batch(number, device)
    return embeddings, head.prepare(labels, number)


def test_update_before_forward_is_refused(device):
    head = new_head(device)
    _, step = prepared(head, 3, device)
    with pytest.raises(
        RuntimeError, match=r"update\(\) of step 3: call loss = head\(embeddings, step\) first"
    ):
        head.update(step, 0.1)


def test_update_before_backward_is_refused_and_changes_nothing(device):
    head = new_head(device)
    before = head.centers.tensors["centers"].clone()
    embeddings, step = prepared(head, 3, device)
    loss = head(embeddings, step)
    with pytest.raises(RuntimeError, match=r"update\(\) of step 3: call loss.backward\(\) first"):
        head.update(step, 0.1)
    assert torch.equal(head.centers.tensors["centers"], before)
    loss.backward()
    head.update(step, 0.1)
    assert not torch.equal(head.centers.tensors["centers"], before)


def test_a_second_forward_is_refused_while_an_update_is_due(device):
    head = new_head(device, sample_rate=0.3)
    embeddings, step = prepared(head, 0, device)
    others, other = prepared(head, 1, device)
    loss = head(embeddings, step)
    with pytest.raises(
        RuntimeError, match=r"forward\(\) of step 1: call update\(\) or discard\(\) of step 0 first"
    ):
        head(others, other)
    with pytest.raises(
        RuntimeError, match=r"forward\(\) of step 0 for the second time; call update\(\) or discard"
    ):
        head(embeddings, step)
    loss.backward()
    head.update(step, 0.1)
    head(others, other)


@pytest.mark.parametrize("call", ["update", "forward", "observe", "discard"])
@pytest.mark.parametrize("end", ["updated", "discarded"])
def test_a_step_that_is_over_is_refused(device, call, end):
    head = new_head(device)
    embeddings, step = prepared(head, 7, device)
    if end == "updated":
        head(embeddings, step).backward()
        head.update(step, 0.1)
    else:
        head.discard(step)
    calls = {
        "update": lambda: head.update(step, 0.1),
        "forward": lambda: head(embeddings, step),
        "observe": lambda: head.observe(step),
        "discard": lambda: head.discard(step),
    }
    with pytest.raises(
        RuntimeError, match=rf"{call}\(\) of step 7, which was {end}; create a new step with prepare\(\)"
    ):
        calls[call]()


@pytest.mark.parametrize("call", ["update", "forward", "observe", "discard"])
def test_a_step_of_another_head_is_refused(device, call):
    embeddings, step = prepared(new_head(device), 7, device)
    head = new_head(device)
    calls = {"update": lambda: head.update(step, 0.1), "forward": lambda: head(embeddings, step)}
    calls |= {"observe": lambda: head.observe(step), "discard": lambda: head.discard(step)}
    with pytest.raises(
        RuntimeError, match=rf"{call}\(\): expected a step of this head, got step 7 of another head"
    ):
        calls[call]()


def test_embeddings_without_gradient_do_not_begin_a_step(device):
    head = new_head(device)
    embeddings, step = prepared(head, 0, device)
    assert not head(embeddings.detach(), step).requires_grad
    with pytest.raises(
        RuntimeError, match=r"embeddings that require a gradient \(embeddings.requires_grad_\(\) if"
    ):
        head.update(step, 0.1)


def run(device: str, options: dict[str, Any], look: bool) -> list[Tensor]:
    """Losses and rows of six steps; with `look`, evaluations and observations stand between all calls."""
    head, seen = new_head(device, **options), []
    ahead = prepared(head, 0, device)
    for number in range(6):
        (embeddings, step), ahead = ahead, prepared(head, number + 1, device)
        evaluated = [evaluate(head, number, device, ahead)] if look else []
        loss = head(embeddings, step)
        if look:
            evaluated.append(evaluate(head, number, device, ahead))
        loss.backward()
        if look:
            evaluated.append(evaluate(head, number, device, ahead))
            head.observe(step)
            assert len(set(evaluated)) == 1  # the rows have not moved
        head.update(step, 0.3)
        seen += [loss.detach().cpu(), embeddings.grad.cpu()]
    return seen + [rows.cpu() for rows in head.centers.tensors.values()]


def evaluate(
    head: PartialFC, number: int, device: str, ahead: tuple[Tensor, HeadStep]
) -> tuple[float, float]:
    """The losses, without gradient, of a batch that is not trained on, and of the next step."""
    others, labels = batch(100 + number, device)
    with torch.no_grad():
        return float(head(others, head.prepare(labels, 100 + number))), float(head(*ahead))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_evaluations_between_forward_and_update_change_nothing(device, options):
    assert all(map(torch.equal, run(device, options, look=False), run(device, options, look=True)))


def run_with_discarded(device: str, options: dict[str, Any], discard: str | None) -> list[Tensor]:
    head, losses = new_head(device, **options), []
    ahead = prepared(head, 0, device)
    for number in range(6):
        (embeddings, step), ahead = ahead, prepared(head, number + 1, device)
        if number == 2:
            if discard in ("forward", "backward"):
                loss = head(embeddings, step)
            if discard == "backward":
                loss.backward()
            if discard is not None:
                head.discard(step)
            continue
        loss = head(embeddings, step)
        loss.backward()
        head.update(step, 0.3)
        losses.append(loss.detach().cpu())
    return losses + [it.cpu() for it in head.state_dict().values()]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("discard", ["prepared", "forward", "backward"])
def test_a_discarded_step_changes_nothing(device, options, discard):
    expected = run_with_discarded(device, options, None)
    assert all(map(torch.equal, run_with_discarded(device, options, discard), expected))


def moved_by(device: str, weight: float, loss_scale: float, backwards: int) -> tuple[Tensor, Tensor]:
    """How far one step moves the centers; the embeddings' gradient."""
    head = PartialFC(CLASSES, WIDTH, CosFace(scale=8.0), device=device, dtype=torch.float64)
    before = head.centers.tensors["centers"].clone()
    embeddings, labels = batch(0, device)
    embeddings = embeddings.detach().double().requires_grad_()
    step = head.prepare(labels, 0)
    loss = weight * head(embeddings, step) * loss_scale
    for left in reversed(range(backwards)):
        loss.backward(retain_graph=left > 0)
    no_decay = before * (1 - 0.1 * 5e-4)
    taken = torch.ones((), dtype=torch.bool, device=device)
    head.update(step, 0.1, taken, loss_scale=torch.tensor(loss_scale, device=device))
    return head.centers.tensors["centers"] - no_decay, embeddings.grad


def test_a_weighted_loss_moves_rows_by_its_weight_and_a_loss_scale_does_not(device):
    move, gradient = moved_by(device, 1.0, 1.0, 1)
    for weight, loss_scale, backwards in ((0.1, 1.0, 1), (1.0, 1024.0, 1), (0.1, 1024.0, 1), (1.0, 1.0, 2)):
        found, of_embeddings = moved_by(device, weight, loss_scale, backwards)
        torch.testing.assert_close(found, weight * backwards * move)
        torch.testing.assert_close(of_embeddings, weight * loss_scale * backwards * gradient)
