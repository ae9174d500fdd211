"""File with the results of all checks, to be attached to a report of a problem or of new machines."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from partialfc.config import Config
from partialfc.doctor.result import CheckResult
from partialfc.input_files import read_file
from partialfc.runtime.comm import DistContext
from partialfc.runtime.files import atomic_write, decode_json
from partialfc.runtime.versions import collect_versions, describe_device


def write_report(
    path: Path, results: Mapping[str, CheckResult], config: Config, dist_ctx: DistContext
) -> None:
    """Write the results of rank 0.

    Raises:
        OSError: If the file cannot be written.
    """
    content = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": dist_ctx.world_size,
        "device": describe_device(dist_ctx.device),
        "versions": collect_versions(dist_ctx.device),
        "recipe": msgspec.to_builtins(config),
        "checks": {name: dataclasses.asdict(result) for name, result in results.items()},
    }
    _write(path, content)


def add_to_report(path: Path, name: str, result: CheckResult) -> None:
    """Add the result of another check to a report."""
    content = decode_json(read_file(path), dict[str, Any], str(path))
    content["checks"][name] = dataclasses.asdict(result)
    _write(path, content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
