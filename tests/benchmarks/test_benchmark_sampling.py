"""The launcher's environment keeps the page faults of sampling away, and the benchmark of sampling shows it."""

import os
import platform
from unittest import mock

import pytest

from benchmarks import sampling
from partialfc.config import Config, DataConfig, TrainConfig
from partialfc.launching import launcher
from partialfc.launching.rendezvous import ClusterSpec
from partialfc.runtime.platform import MALLOC_ENVIRONMENT


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_temporary_arrays_are_not_mapped_again_in_every_call():
    raised, without = (sampling.measure_in_process(8, raised=it) for it in (True, False))
    assert [row["case"] for row in raised] == [case for case in sampling.CASES for _ in ("host", "device")]
    assert max(row["rows"] for row in raised) > 120_000
    assert all(row["faults"] < 20 for row in raised), raised
    assert any(row["faults"] > 200 for row in without if row["sample_on"] == "host"), without


def test_ranks_get_the_variables_unless_the_user_has_set_them():
    config, cluster = (
        Config(data=DataConfig(path="pack"), train=TrainConfig(length=1)),
        ClusterSpec(1, "localhost:0", "id", 2, 60),
    )
    name = next(iter(MALLOC_ENVIRONMENT))
    with mock.patch.dict(os.environ):
        for it in MALLOC_ENVIRONMENT:
            os.environ.pop(it, None)
        os.environ[name] = "1048576"
        launcher._set_environment(config, cluster)
        assert os.environ[name] == "1048576"
        assert {it: os.environ[it] for it in MALLOC_ENVIRONMENT} == MALLOC_ENVIRONMENT | {name: "1048576"}
