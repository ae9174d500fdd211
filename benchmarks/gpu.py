"""Benchmark of one GPU, in one command of at most eight minutes, without a network.

    python -m benchmarks.gpu --json gpu.json                             full report
    python -m benchmarks.gpu heads --insightface DIR --json heads.json   one section; DIR: insightface's
        arcface_torch

A section that fails or times out is reported, and the others continue. Without a GPU it is a dry run with
meaningless numbers. It requires torch, numpy, OpenCV, PyYAML and msgspec; the section `tests` requires
requirements-test.txt.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from benchmarks.measurement import MeasurementRow

ROOT = Path(__file__).resolve().parent.parent
# Sections by importance, and the maximum seconds of each.
SECTIONS = {
    "machine": 30,
    "ceilings": 40,
    "agreement": 90,
    "heads": 110,
    "steps": 130,
    "tests": 150,
    "kernels": 60,
    "compiled": 120,
    "many": 100,
}
_FUNCTIONS = {
    "machine": ("benchmarks.gpu_sections", "describe_machine"),
    "ceilings": ("benchmarks.gpu_sections", "measure_ceilings"),
    "agreement": ("benchmarks.gpu_sections", "check_agreement"),
    "heads": ("benchmarks.gpu_heads", "benchmark_heads"),
    "steps": ("benchmarks.gpu_steps", "benchmark_steps"),
    "kernels": ("benchmarks.gpu_kernels", "benchmark_kernels"),
    "compiled": ("benchmarks.gpu_kernels", "benchmark_compiled"),
    "many": ("benchmarks.gpu_steps", "benchmark_many_identities"),
}
TIME_LIMIT = 470  # seconds for all sections
_STUBBED_PACKAGES = (
    "rich",
    "xxhash",
    "lmdb",
    "msgpack",
    "safetensors",
    "tensorboard",
    "yaml",
    "matplotlib",
    "onnx",
)


def main() -> None:
    options = parse_args()
    if options.one is not None:
        options.json.write_text(json.dumps(section_rows(options.one, options)), encoding="utf-8")
        return
    began, report = time.monotonic(), {}
    for name in options.sections or SECTIONS:
        left = TIME_LIMIT - (time.monotonic() - began)
        report[name] = run_section(name, min(SECTIONS[name], left), options)
        print_rows(name, report[name])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all without")
    parser.add_argument("--json", type=Path, help="write the rows of each section there, too")
    parser.add_argument("--insightface", type=Path, metavar="DIR", help="where their partial_fc_v2.py is")
    parser.add_argument("--one", choices=SECTIONS, help=argparse.SUPPRESS)  # in a separate process
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"found section {', '.join(unknown)}; expected some of {', '.join(SECTIONS)}")
    return options


def run_section(name: str, seconds: float, options: argparse.Namespace) -> list[MeasurementRow]:
    """Return a section's rows from a separate process, since a GPU fault ends the process."""
    if seconds <= 0:
        return [{"not run": "no time is left"}]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, "--json", str(out)]
        if options.insightface:
            command += ["--insightface", str(options.insightface.resolve())]
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return [{"not run": f"took more than {seconds:.0f} s"}]
        if done.returncode or not out.exists():
            return [{"failed": done.returncode, "said": done.stderr[-3000:]}]
        rows: list[MeasurementRow] = json.loads(out.read_text(encoding="utf-8"))
        return [*rows, {"seconds": time.monotonic() - began}]


def section_rows(name: str, options: argparse.Namespace) -> list[MeasurementRow]:
    if name == "tests":
        return run_tests()
    sys.meta_path.append(StubFinder())
    from benchmarks import gpu_sections

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.zeros((), device=device)  # memory statistics require an initialized device
    machine = gpu_sections.BenchmarkMachine(device, options.insightface)
    module, function = _FUNCTIONS[name]
    rows: list[MeasurementRow] = getattr(importlib.import_module(module), function)(machine)
    return rows


def run_tests() -> list[MeasurementRow]:
    """Run the head's tests on the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = ["tests/head"] if device == "cuda" else ["tests/head/test_shard.py"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "--device", device, *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return [{"exit_code": done.returncode, "said": done.stdout[-4000:] + done.stderr[-1000:]}]


class StubFinder(MetaPathFinder, Loader):
    """Import stub for packages that training uses but a step does not."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        expected = name.split(".")[0] in _STUBBED_PACKAGES
        return ModuleSpec(name, self, is_package=True) if expected else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = self._anything  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""

    @staticmethod
    def _anything(name: str) -> type[mock.MagicMock]:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock


def print_rows(name: str, rows: list[MeasurementRow]) -> None:
    """Print rows with the same keys as a table."""
    print(f"\n## {name}\n", flush=True)
    shown: tuple[str, ...] = ()
    for row in rows:
        if tuple(row) != shown:
            shown = tuple(row)
            print("| " + " | ".join(shown) + " |\n|" + "---|" * len(shown))
        print("| " + " | ".join(map(format_cell, row.values())) + " |", flush=True)


def format_cell(value: Any) -> str:
    if isinstance(value, str):
        return value.strip().rpartition("\n")[2]  # the error message of a failure
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    main()
