import os
from unittest import mock

import pytest
import torch

from partialfc.runtime.precision import set_deterministic


@pytest.fixture
def afterwards_as_before():
    before = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    with mock.patch.dict(os.environ):
        yield
    torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("afterwards_as_before")
@pytest.mark.parametrize("deterministic", [False, True])
def test_algorithms_are_the_fastest_or_those_whose_bits_do_not_vary(deterministic):
    set_deterministic(deterministic=deterministic)
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
