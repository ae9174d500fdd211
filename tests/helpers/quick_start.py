"""Processes that start in no time: each is forked from one that has imported what takes long, and has done nothing else."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

_FORKED = get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "matplotlib.backends.backend_agg",
        "onnxruntime",
        "partialfc.commands.app",
        "partialfc.inference.evaluation_report",
        "partialfc.training.loop",
        "torch._dynamo",
        "torch.distributed.tensor",
        "torch.onnx",
    ]
)


def started(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls the function, in the folder and the environment of this one."""
    process = _FORKED.Process(target=_call, args=(dict(os.environ), function, arguments))
    process.start()
    return process


def _call(environment: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)
