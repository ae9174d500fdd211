"""Rounding to bfloat16: to a neighbor, right on average, and the same for any sharding."""

import numpy as np
import pytest
import torch
from torch import Tensor

from partialfc.head.buffers import BufferPool
from partialfc.head.storage import rounding


def rounded(values: Tensor, classes: np.ndarray, step: int, name: str = "centers") -> Tensor:
    noise, columns = rounding.row_noise(classes, 3, step), rounding.column_noise(name, values.shape[1])
    return rounding.round_(values.clone(), noise, columns, BufferPool(values.device))


def numbers() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 32, generator=generator) * torch.logspace(-30, 30, 32)
    values[0] = 0
    return values


def test_a_number_becomes_one_of_its_two_neighbours():
    values = numbers()
    result = rounded(values, np.arange(64), 0)
    assert torch.equal(result.bfloat16().float(), result)
    below = (values.view(torch.int32) & -65536).view(torch.float32)
    above = ((values.view(torch.int32) & -65536) + 65536).view(torch.float32)
    assert ((result == below) | (result == above)).all()
    assert (result == below).any() and (result == above).any()


def test_what_bfloat16_holds_stays():
    values = numbers().bfloat16().float()
    for step in range(50):
        assert torch.equal(rounded(values, np.arange(64), step), values)


def test_it_is_unbiased_and_draws_are_independent():
    steps, values = 4000, torch.tensor([1.0, 1 + 1 / 1024, 1 + 3 / 1024, -1 - 3.7 / 1024]).repeat(8, 4)
    up = torch.stack([rounded(values, np.arange(8), step) for step in range(steps)]).abs() > 1
    expected = torch.tensor([0.0, 1 / 8, 3 / 8, 3.7 / 8]).repeat(8, 4)
    error = (expected * (1 - expected) / steps).sqrt()
    assert ((up.double().mean(0) - expected).abs() <= 5 * error).all()
    moving = up[:, expected > 0].double()
    correlations = torch.corrcoef(moving.T) - torch.eye(moving.shape[1])
    assert correlations.abs().max() < 6 / steps**0.5
    moving -= moving.mean(0)
    along_the_run = torch.corrcoef(torch.stack([moving[1:].flatten(), moving[:-1].flatten()]))[0, 1]
    assert abs(along_the_run) < 5 / moving.numel() ** 0.5


def test_a_class_is_rounded_alike_whatever_stands_beside_it():
    values = numbers()
    whole = rounded(values, np.arange(64), 5)
    some = np.array([3, 17, 63])
    assert torch.equal(rounded(values[some], some, 5), whole[some])


@pytest.mark.parametrize("other", [{"step": 6}, {"name": "momentum"}])
def test_steps_and_tensors_have_draws_of_their_own(other):
    settings = {"step": 5, "name": "centers"}
    values = numbers()
    same = rounded(values, np.arange(64), **settings) == rounded(values, np.arange(64), **settings | other)
    assert 0.5 < same.double().mean() < 0.9
