"""Settings by step or epoch, in a recipe and in Python: what they are in a step, and what is refused."""

import pytest

from partialfc import recipe
from partialfc.config import HeadConfig, load_config
from partialfc.config.scheduled import value_at
from partialfc.errors import InputError

EPOCH = 3
RATES = {0: 0.2, "1 epochs": [0.2, 0.5], "2 epochs": 1.0}


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text("data: {path: faces}\ntrain: {length: 26 epochs}\n")
    return path


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.2), (2, 0.2), (3, 0.2), (4, 0.3), (5, 0.4), (6, 1.0), (10**6, 1.0)]
)
def test_a_stage_is_a_number_or_a_way_to_the_next(step, expected):
    assert value_at(RATES, step, EPOCH) == pytest.approx(expected)
    in_json = {str(key): value for key, value in RATES.items()}
    assert value_at(in_json, step, EPOCH) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "expected 0 as the first key"),
        ({1: 0.1}, "expected 0 as the first key"),
        ({0: 0.1, 5: 0.2, "3 epochs": 0.3}, "expected steps or epochs, not both"),
        ({0: 0.1, 5: 0.2, 3: 0.3}, "expected ascending keys"),
        ({0: 0.1, 5: (0.2, 0.3)}, "expected a number at the last key"),
        ({0: (0.1,), 5: 0.2}, "expected a number, or two for a ramp"),
        ({0: 0.1, 5: 1.2}, r"HeadConfig.sample_rate: expected float <= 1.0"),
    ],
)
def test_stages_that_say_too_little_are_refused(stages, message):
    with pytest.raises(InputError, match=message):
        HeadConfig(sample_rate=stages)


def test_stages_are_one_value_that_another_recipe_replaces_whole(minimal, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(
        "base: minimal.yaml\nhead: {sample_rate: {0: 0.1, 30 epochs: 1}, logit_correction: log_q}\n"
    )
    second.write_text("base: first.yaml\nhead: {sample_rate: {0: [0.2, 0.5], 500: 0.5}}\n")
    assert load_config(first).head == HeadConfig(
        sample_rate={0: 0.1, "30 epochs": 1.0}, logit_correction="log_q"
    )
    assert load_config(second).head.sample_rate == {0: (0.2, 0.5), 500: 0.5}
    assert load_config(second, ["head.sample_rate={0: 0.3}"]).head.sample_rate == {0: 0.3}
    third = tmp_path / "third.yaml"
    third.write_text(recipe.dump(load_config(second)))
    assert load_config(third) == load_config(second)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("{0: 2}", "head.sample_rate: expected float <= 1.0; found {0: 2}"),
        ("{0: x}", "head.sample_rate: expected float | array, got str; found {0: 'x'}"),
        ("x", "head.sample_rate: 'x', expected a number, or a schedule by step or epoch"),
        ("2", "head.sample_rate: expected float <= 1.0; found 2"),
        ("{3 days: 0.1}", "head.sample_rate: {'3 days': 0.1}, expected as a key a step, or text such as 26 epochs"),
        ("{5: 0.1}", "head.sample_rate: {5: 0.1}, expected 0 as the first key"),
    ],
)  # fmt: skip
def test_stages_that_are_none_are_refused_in_one_line(minimal, stages, message):
    with pytest.raises(InputError) as raised:
        load_config(minimal, [f"head.sample_rate={stages}"])
    assert str(raised.value).endswith(message)
