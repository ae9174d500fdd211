"""Commands and tools, called as from a shell, each in a process of its own."""

import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any

from helpers import quick_start
from partialfc.__main__ import main

_LIMIT = 120  # seconds


def called(*arguments: object) -> CompletedProcess[str]:
    """`partialfc ARGUMENTS`."""
    return _ran(main, [str(it) for it in arguments])


def called_module(name: str, *arguments: object) -> CompletedProcess[str]:
    """`python -m NAME ARGUMENTS`."""
    return _ran(_module, name, [str(it) for it in arguments])


def called_tool(path: Path, *arguments: object) -> CompletedProcess[str]:
    """`python PATH ARGUMENTS`."""
    return _ran(_tool, path, [str(it) for it in arguments])


def _tool(path: Path, arguments: list[str]) -> None:
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _module(name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _ran(function: Callable[..., None], *arguments: Any) -> CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = quick_start.started(_run, out, err, function, *arguments)
        process.join(_LIMIT)
        code = process.exitcode
        if code is None:
            process.kill()
            raise TimeoutExpired(str(arguments), _LIMIT, out.read_text(), err.read_text())
        return CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _run(out: Path, err: Path, function: Callable[..., None], *arguments: Any) -> None:
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    function(*arguments)
