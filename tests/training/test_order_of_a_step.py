"""What the host does while a step is computed."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from partialfc.data.loader import StepFlags
from partialfc.monitoring.run_logger import RunLogger
from partialfc.runtime.process.signals import StopRequest
from partialfc.runtime.process.watchdog import Watchdog
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
    batches = [SimpleNamespace(labels=step, flags=StepFlags(save_due=int(step == 6))) for step in (5, 6, 7)]
    scheduler = mock.Mock()

    def prepare(labels: int, step: int) -> int:
        assert labels == step
        done.append(f"prepare {step}")
        return step

    run = SimpleNamespace(
        step=5,
        total_steps=8,
        config=SimpleNamespace(
            head=SimpleNamespace(memory=memory),
            launch=SimpleNamespace(step_timeout="1 minute"),
            log=SimpleNamespace(profile=None),
            output="output",
        ),
        dist_ctx=SimpleNamespace(rank=0, world_size=1, device=torch.device(device)),
        loader=SimpleNamespace(batches=lambda *_: iter(batches)),
        head=SimpleNamespace(prepare=prepare),
    )
    with mock.patch.multiple(
        loop,
        train_step=lambda _, batch, step: done.append(f"step {step}"),
        watch=lambda *_: nullcontext(Watchdog(run.dist_ctx, None, 60)),
        _is_evaluation_due=lambda run: False,
        _log_training_images=mock.Mock(),
    ):
        loop._run_steps(run, RunLogger(), scheduler, StopRequest())
    assert done == expected
    due = [call.args[0] for call in scheduler.after_step.call_args_list]
    assert due == [True, False, False]  # the flags of the following batch
