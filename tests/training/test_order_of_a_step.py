"""What the host does while a step is computed."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from partialfc.data.loader import StepFlags
from partialfc.training import loop


@pytest.mark.parametrize(
    ("device", "memory", "expected"),
    [
        ("cuda", "device", ["prepare 5", "step 5", "prepare 6", "step 6", "prepare 7", "step 7"]),
        ("cuda", "host", ["prepare 5", "prepare 6", "step 5", "prepare 7", "step 6", "step 7"]),
        ("cpu", "device", ["prepare 5", "prepare 6", "step 5", "prepare 7", "step 6", "step 7"]),
    ],
)
def test_the_next_step_is_prepared_while_one_is_computed(device, memory, expected):
    """On a GPU after it is launched; before on a CPU, and where rows are to be fetched meanwhile."""
    done = []
    batches = [SimpleNamespace(labels=number, notices=StepFlags(signal=number)) for number in (5, 6, 7)]

    def prepare(labels: int, number: int) -> int:
        assert labels == number
        done.append(f"prepare {number}")
        return number

    run = SimpleNamespace(
        step=5,
        last_step=8,
        config=SimpleNamespace(head=SimpleNamespace(memory=memory)),
        ranks=SimpleNamespace(device=torch.device(device)),
        loader=SimpleNamespace(batches=lambda *_: iter(batches)),
        head=SimpleNamespace(prepare=prepare),
    )
    with mock.patch.object(loop, "train_step", lambda _, batch, step: done.append(f"step {step}")):
        heard = [notices.signal for _, _, notices in loop._iterate_steps(run, StepFlags, mock.Mock())]
    assert done == expected and heard == [6, 7, 7]
