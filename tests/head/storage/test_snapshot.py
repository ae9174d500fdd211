"""Rows that are read as they were, whatever steps do meanwhile."""

import numpy as np
import pytest
import torch

from partialfc.head.storage.host import RowSnapshot


@pytest.mark.parametrize("seed", range(4))
def test_what_is_read_is_what_was_there(seed):
    draw = np.random.default_rng(seed)
    tensor = torch.randn(100, 3)
    before, frozen, read = tensor.clone(), RowSnapshot(tensor), []
    start = 0
    while start < 100:
        for _ in range(draw.integers(4)):
            rows = np.flatnonzero(draw.random(100) < 0.2)
            frozen.before_write(rows)
            tensor[rows] = torch.randn(len(rows), 3)
        stop = min(100, start + int(draw.integers(1, 30)))
        read.append(frozen.read(start, stop))
        start = stop
    assert torch.equal(torch.cat(read), before) and not torch.equal(tensor, before)


def test_only_what_is_not_read_yet_is_kept_aside_and_once():
    tensor = torch.arange(40.0).reshape(10, 4)
    frozen = RowSnapshot(tensor)
    frozen.read(0, 5)
    for rows in ([1, 4, 6, 7], [6, 9], [0]):
        frozen.before_write(np.array(rows))
        tensor[rows] = 0
    assert [kept.tolist() for kept, _ in frozen._saved_rows] == [[6, 7], [9]]
    assert frozen.read(5, 10)[:, 0].tolist() == [20, 24, 28, 32, 36]
    frozen.close()
    frozen.before_write(np.array([8]))
    assert not frozen._saved_rows
