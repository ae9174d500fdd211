"""The class centers that a run begins with."""

import numpy as np
import pytest
import torch

from partialfc.head.storage import initial
from partialfc.head.storage.initial import STD, by_hash, init_centers
from partialfc.runtime import counter_rng


@pytest.fixture(params=["by a CPU", "as by a GPU"])
def drawing(request, monkeypatch):
    if request.param != "by a CPU":
        monkeypatch.setattr(initial, "_by_numpy", by_hash)


def drawn(owned: range, seed: int = 3, width: int = 5) -> torch.Tensor:
    centers = torch.full((len(owned), width), torch.nan)
    init_centers(centers, seed, owned, torch.device("cpu"))
    return centers


@pytest.mark.usefixtures("drawing")
def test_centres_are_the_same_for_any_sharding():
    whole = drawn(range(10_000))
    for start, stop in ((0, 1), (4000, 4200), (4096, 8192), (9999, 10_000), (7, 7)):
        assert torch.equal(drawn(range(start, stop)), whole[start:stop])
    assert not torch.equal(drawn(range(10_000), seed=4), whole)


@pytest.mark.usefixtures("drawing")
def test_centres_are_normal_and_independent():
    """Of 2 million numbers: moments, the tails, neighbors in a row, a column and a block."""
    values = (drawn(range(8192), width=256) / STD).double()
    moments = [values.mean(), values.square().mean(), values.pow(3).mean(), values.pow(4).mean()]
    for found, expected, spread in zip(moments, (0, 1, 0, 3), (1, 1.5, 4, 10), strict=True):
        assert abs(found - expected) < 5 * spread / values.numel() ** 0.5
    beyond = (values.abs() > 3).double().mean()
    assert beyond == pytest.approx(0.0026998, rel=0.05) and 4.5 < values.abs().max() < 6.5
    for one, other in (
        (values[:, 1:], values[:, :-1]), (values[1:], values[:-1]), (values[4096:], values[:4096]),
    ):  # fmt: skip
        assert abs((one * other).mean()) < 5 / one.numel() ** 0.5
        assert abs((one.square() * other.square()).mean() - 1) < 5 * 3 / one.numel() ** 0.5


def test_the_words_of_a_device_are_those_of_the_host():
    index = np.arange(1000)
    expected = counter_rng.random_bits(counter_rng.derive_key(1, "some"), index).view(np.int64)
    key = counter_rng.as_int64(counter_rng.derive_key(1, "some"))
    words = torch.from_numpy(index) * counter_rng.as_int64(counter_rng.GAMMA) + key
    assert torch.equal(counter_rng.mix_words(words), torch.from_numpy(expected))
