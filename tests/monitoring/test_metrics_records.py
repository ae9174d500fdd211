"""metrics.jsonl of killed runs, and of none."""

import math

import pytest

from partialfc.errors import InputError
from partialfc.monitoring.metrics_file import MetricsFile
from partialfc.runtime.metrics_records import read_metrics

RECORD = b'{"step":1,"loss":2.5,"lr":0.1}\n'


@pytest.mark.parametrize("rest", [b'{"step":2,"lo', b"\xff", b'{"step":2}'])
def test_the_last_line_may_be_incomplete(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(RECORD + rest)
    records = read_metrics(path)
    assert records[0] == {"step": 1, "loss": 2.5, "lr": 0.1}
    assert records[1:] == ([{"step": 2}] if rest.endswith(b"}") else [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"loss":1,"lr":1}', "missing required field `step`"),
        (b'{"step":2,"loss":1}', "a loss without lr"),
        (b'{"step":"2"}', "Expected `int`, got `str`"),
        (b'{"step":2,"verification":{"lfw":3}}', "Expected `object`, got `int`"),
        (b'{"step":2,"time_ms":{"data":"a"}}', "Expected `float`, got `str`"),
        (b"[]", "Expected `object`, got `array`"),
        (b"\xff", "malformed"),
        (b"", "Input data was truncated"),
        (b'{"step":2,"other":' + b"[" * 100_000, "recursion"),
    ],
)
def test_another_line_is_refused_with_its_number(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(RECORD + line + b"\n" + RECORD)
    with pytest.raises(
        InputError, match=rf"metrics.jsonl, line 2: expected a record of a run: .*({message})"
    ):
        read_metrics(path)


def test_a_file_without_a_record_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"something else")
    with pytest.raises(InputError, match="line 1: expected a record of a run"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_undefined_scores_are_nan_and_sets_without_scores_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1,"verification":{"a":{"accuracy":null},"b":{}}}\n')
    (record,) = read_metrics(path)
    assert list(record["verification"]) == ["a"] and math.isnan(record["verification"]["a"]["accuracy"])


def test_a_resumed_run_drops_damaged_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(RECORD + b'{"loss":1}\n' + b'{"step":2,"lo')
    file = MetricsFile(path, 5)
    file.write({"step": 6})
    file.close()
    assert [record["step"] for record in read_metrics(path)] == [1, 6]
