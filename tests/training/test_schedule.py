"""Rates and due dates as functions of the step."""

import pytest

from partialfc.config import CosineSchedule, MultiStepSchedule, PolynomialSchedule
from partialfc.config.durations import to_steps
from partialfc.training.schedule import is_due, learning_rate


def rates(schedule, total=10, per_epoch=5):
    return [
        learning_rate(schedule, step, peak=2.0, total_steps=total, steps_per_epoch=per_epoch)
        for step in range(total)
    ]


@pytest.mark.parametrize("kind", [PolynomialSchedule, CosineSchedule])
def test_up_to_the_peak_and_down_towards_zero(kind):
    found = rates(kind(warmup=4))
    assert found[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert found[5:] == sorted(found[5:], reverse=True) and 0 < found[-1] < 0.2


def test_polynomial_is_its_formula():
    assert rates(PolynomialSchedule(power=3.0)) == pytest.approx(
        [2 * (1 - step / 10) ** 3 for step in range(10)]
    )


def test_cosine_is_at_half_in_the_middle():
    assert rates(CosineSchedule())[5] == pytest.approx(1.0)


def test_step_drops_at_steps_and_at_epochs():
    assert (
        rates(MultiStepSchedule(milestones=(3, "1.4 epochs"), gamma=0.5)) == [2.0] * 3 + [1.0] * 4 + [0.5] * 3
    )


def test_the_rate_stays_low_past_the_end():
    for schedule in (PolynomialSchedule(), CosineSchedule()):
        assert learning_rate(schedule, 12, peak=1.0, total_steps=10, steps_per_epoch=5) == pytest.approx(
            0.0, abs=1e-12
        )


def test_durations():
    assert to_steps(7, 100) == 7 and to_steps("26 epochs", 100) == 2600 and to_steps("0.5 epochs", 5) == 2


def test_due():
    assert [step for step in range(1, 8) if is_due(step, every=3, last=7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if is_due(step, every=0, last=7)] == [7]
