"""Products of steps: any interval's, after any number of steps, also when they were loaded."""

import numpy as np
import pytest
import torch
from torch import Tensor

from partialfc.config import SGD
from partialfc.errors import InputError
from partialfc.head.optimizers import RowSGD
from partialfc.head.storage import catch_up
from partialfc.head.storage.catch_up import CatchUp, TransitionHistory

CPU = torch.device("cpu")


def matrices(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.eye(2, dtype=torch.float64) + 0.3 * torch.randn(
        count, 2, 2, dtype=torch.float64, generator=generator
    )


def product(steps: Tensor) -> Tensor:
    result = torch.eye(2, dtype=torch.float64)
    for matrix in steps:
        result = matrix @ result
    return result


def assert_right(history: TransitionHistory, steps: Tensor) -> None:
    starts = np.arange(len(steps) + 1)
    expected = torch.stack([product(steps[start:]) for start in starts])
    torch.testing.assert_close(history.products(starts), expected, rtol=1e-12, atol=1e-12)


def test_products_are_those_of_the_single_steps():
    history, steps = TransitionHistory(CPU), matrices(100)
    for length in range(100):
        assert_right(history, steps[:length])
        history.append(steps[length])


def test_products_after_loading():
    steps = matrices(130)
    for length in (0, 1, 2, 63, 64, 65, 100):
        history = TransitionHistory(CPU)
        history.fill(torch.stack(list(steps))[:length])
        assert_right(history, steps[:length])
        for matrix in steps[length:]:
            history.append(matrix)
        assert_right(history, steps)


def test_products_of_many_steps_stay_right():
    """Of 5,000 steps of momentum 0.9, whose prefix products would be 1e-229."""
    history = TransitionHistory(CPU)
    step = torch.tensor([[1 - 1e-5, -0.09], [1e-4, 0.9]], dtype=torch.float64)
    for _ in range(5000):
        history.append(step)
    torch.testing.assert_close(
        history.products(np.array([4990]))[0], torch.linalg.matrix_power(step, 10), rtol=1e-12, atol=0
    )


def test_each_row_is_caught_up_from_its_own_last_step():
    optimizer = RowSGD(SGD(momentum=0.9, nesterov=True, weight_decay=0.1), moments=True)
    catch_up, rates = CatchUp(5, optimizer, CPU, torch.float64), torch.tensor([0.3, 0.2, 0.4, 0.1])
    for number, rows in enumerate(([0, 1], [1, 4], [0], [3])):
        catch_up.append(np.array(rows), rates[number].double(), torch.tensor(number != 2))
    steps = optimizer.transitions(rates.double())
    steps[2] = torch.eye(2)  # it was skipped
    expected = torch.stack([product(steps[last:]) for last in (3, 2, 0, 4, 2)])
    torch.testing.assert_close(catch_up.factors(np.arange(5)), expected)


def test_steps_before_rows_were_to_catch_up_leave_them_as_they_were():
    optimizer = RowSGD(SGD(momentum=0.9, weight_decay=0.1), moments=True)
    catch_up = CatchUp(3, optimizer, CPU, torch.float64)
    catch_up.after_load(7)  # of a run that kept nothing of them
    torch.testing.assert_close(catch_up.factors(np.arange(3)), torch.eye(2).double().expand(3, 2, 2))
    catch_up.append(np.array([1]), torch.tensor(0.3).double(), torch.tensor(True))
    (step,) = optimizer.transitions(torch.tensor([0.3]))
    expected = torch.stack([step, torch.eye(2).double(), step])
    torch.testing.assert_close(catch_up.factors(np.arange(3)), expected, atol=1e-7, rtol=0)


def test_a_step_without_gradient_is_that_of_torch():
    rates = torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64)
    for nesterov in (False, True):
        weight = torch.nn.Parameter(torch.tensor([1.5, -0.5], dtype=torch.float64))
        torchs = torch.optim.SGD([weight], momentum=0.9, nesterov=nesterov, weight_decay=0.1)
        torchs.state[weight]["momentum_buffer"] = torch.tensor([0.2, 0.7], dtype=torch.float64)
        state = torch.stack([weight.detach(), torchs.state[weight]["momentum_buffer"]]).clone()
        for rate in rates.tolist():
            weight.grad, torchs.param_groups[0]["lr"] = torch.zeros_like(weight), rate
            torchs.step()
        optimizer = RowSGD(SGD(momentum=0.9, nesterov=nesterov, weight_decay=0.1), moments=True)
        found = product(optimizer.transitions(rates)) @ state
        torch.testing.assert_close(found[0], weight.detach())


def test_more_steps_than_are_kept_are_refused(monkeypatch):
    monkeypatch.setattr(catch_up, "MAX_STEPS", 2)
    behind = CatchUp(1, RowSGD(SGD(), moments=True), CPU, torch.float32)
    for _ in range(2):
        behind.factors(np.array([0]))
        behind.append(np.array([0]), torch.tensor(0.1), torch.tensor(True))
    with pytest.raises(InputError, match=r"head.unsampled: decay supports at most 2 steps; set it to hold"):
        behind.factors(np.array([0]))
