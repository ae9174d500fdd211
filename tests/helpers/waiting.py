"""A block in which nothing may wait for the device."""

import warnings
from contextlib import ExitStack
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoWaiting:
    """Fails on what would make the host wait for a device: reading a value, or a shape that values decide.

    On a CPU by the operations that are called, on a GPU by torch's own watch over synchronization.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._on_gpu:
            with warnings.catch_warnings(action="ignore"):  # that it is a prototype
                torch.cuda.set_sync_debug_mode("error")
            self._stack.callback(torch.cuda.set_sync_debug_mode, "default")
            return self
        self._stack.enter_context(_Watch())
        for name in ("tolist", "cpu"):  # which an operation on the host does not show
            self._stack.enter_context(mock.patch.object(Tensor, name, _refused(name)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class _Watch(TorchDispatchMode):
    FORBIDDEN = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten.repeat_interleave",
        "aten._unique",
        "aten.unique",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not name.startswith(self.FORBIDDEN), f"{name} waits for the device"
        if name.startswith(("aten.index.", "aten.index_put")):  # by a mask: how many rows depends on values
            masks = [it for it in tree_leaves(args[1]) if isinstance(it, Tensor) and it.dtype == torch.bool]
            assert not masks, f"{name} by a mask waits for the device"
        return function(*args, **(kwargs or {}))


def _refused(name: str) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError(f"Tensor.{name} waits for the device")

    return refuse
