"""Products of steps: any interval's, after any number of steps, also when they were loaded."""

import numpy as np
import torch
from torch import Tensor

from partialfc.head.rows.catch_up import CatchUp, History

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


def assert_right(history: History, steps: Tensor) -> None:
    starts = np.arange(len(steps) + 1)
    wanted = torch.stack([product(steps[start:]) for start in starts])
    torch.testing.assert_close(history.products(starts), wanted, rtol=1e-12, atol=1e-12)


def test_products_are_those_of_the_single_steps():
    history, steps = History(CPU), matrices(100)
    for length in range(100):
        assert_right(history, steps[:length])
        history.append(steps[length])


def test_products_after_loading():
    steps = matrices(130)
    for length in (0, 1, 2, 63, 64, 65, 100):
        saved, again = History(CPU), History(CPU)
        for matrix in steps[:length]:
            saved.append(matrix)
        again.steps(length).copy_(saved.steps(length))
        again.loaded(length)
        assert_right(again, steps[:length])
        for matrix in steps[length:]:
            again.append(matrix)
        assert_right(again, steps)


def test_products_of_many_steps_stay_right():
    """Of 5,000 steps of momentum 0.9, whose prefix products would be 1e-229."""
    history = History(CPU)
    step = torch.tensor([[1 - 1e-5, -0.09], [1e-4, 0.9]], dtype=torch.float64)
    for _ in range(5000):
        history.append(step)
    torch.testing.assert_close(
        history.products(np.array([4990]))[0], torch.linalg.matrix_power(step, 10), rtol=1e-12, atol=0
    )


def test_each_row_is_caught_up_from_its_own_last_step():
    catch_up, steps = CatchUp(5, CPU), matrices(4)
    for rows, matrix in zip(([0, 1], [1, 4], [0], [3]), steps, strict=True):
        catch_up.append(np.array(rows), matrix)
    expected = torch.stack([product(steps[last:]) for last in (3, 2, 0, 4, 2)])
    torch.testing.assert_close(catch_up.factors(np.arange(5)), expected)
