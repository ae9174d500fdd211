"""The report of a GPU, rehearsed without one."""

import json
import os
import subprocess
import sys

import pytest
from helpers.calling import called_module

from benchmarks.gpu_kernels import classify

WITHOUT = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
missing = {"rich", "xxhash", "lmdb", "msgpack", "safetensors", "tensorboard", "matplotlib", "onnx"}
PathFinder.find_spec = lambda name, *more: None if name.split(".")[0] in missing else found(name, *more)
"""


def test_every_section_has_rows(tmp_path):
    sections = ["machine", "ceilings", "agreement", "heads", "steps", "kernels", "compiled", "many"]
    done = called_module("benchmarks.gpu", *sections, "--json", tmp_path / "gpu.json")
    assert done.returncode == 0 and not done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report) == sections
    for name, rows in report.items():
        assert rows[-1].keys() == {"seconds"}, rows  # it was through
        assert f"## {name}" in done.stdout and len(rows) > 1
    errors = [row["loss_error"] for row in report["agreement"] if "matmul_precision" in row]
    assert len(errors) == 24 and max(errors) < 1e-3
    for row in [*report["kernels"][:-1], *report["compiled"][:-1]]:
        assert min(row[kind] for kind in ("convolution", "BatchNorm", "PReLU", "product", "copy")) > 0, row
    assert all(row["ms"] > 0 for name in ("heads", "steps", "many") for row in report[name][:-1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (
            "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64",
            "convolution",
        ),
        ("void cudnn::bn_bw_1C11_kernel_new<float, float, float2, 512, true, 1>", "BatchNorm"),
        ("void at::native::batch_norm_collect_statistics_channels_last_kernel", "BatchNorm"),
        ("void at::native::prelu_kernel", "PReLU"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "product"),
        ("_step_centers", "head"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void at::native::reduce_kernel<512, 1>", "reduction"),
        ("void at::native::vectorized_elementwise_kernel<4>", "other"),
    ],
)
def test_kernels_are_classified(name, kind):
    assert classify(name) == kind


def test_packages_that_no_step_uses_may_be_missing(tmp_path):
    """As in a usual image with torch."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "steps", "many", "--json", tmp_path / "gpu.json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        timeout=300,
    )
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [rows[-1].keys() for rows in report.values()] == [{"seconds"}] * 2, report


def test_what_fails_says_so_and_fails_alone(tmp_path):
    """As where insightface is not what was expected."""
    done = called_module(
        "benchmarks.gpu", "heads", "--insightface", tmp_path, "--json", tmp_path / "gpu.json"
    )
    *rows, last = json.loads((tmp_path / "gpu.json").read_text())["heads"]
    assert done.returncode == 0 and last.keys() == {"seconds"}
    failed = [row for row in rows if "failed" in row]
    assert {row["head"] for row in failed} == {"insightface", "insightface, fp16"}
    assert all(row["failed"] == "ModuleNotFoundError: No module named 'losses'" for row in failed)
    assert sum("ms" in row for row in rows) == len(rows) - len(failed) > 0


def test_an_unknown_section_is_refused():
    done = called_module("benchmarks.gpu", "header")
    assert done.returncode == 2 and "found section header; expected some of machine, ceilings" in done.stderr
