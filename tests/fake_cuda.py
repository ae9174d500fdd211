"""CUDA tensors without a GPU: they know shape, type and device, hold no numbers, and refuse to meet tensors of the host.

torch's FakeTensorMode makes them. A CPU build of torch has no device guard for CUDA, so the one of `meta`, which does
nothing, is entered in its place; it changes nothing for tensors of the host.
"""

import ctypes
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "cuda:0"
_CUDA, _META, _KINDS = 1, 14, 20  # of c10::DeviceType
_NO_KERNEL = {
    "view", "slice", "select", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "alias", "detach",
    "as_strided", "_unsafe_view", "unbind", "split", "is_pinned", "lift_fresh", "empty", "empty_like", "new_empty",
    "empty_strided", "device", "_pin_memory",
}  # fmt: skip


class Crossings(TorchDispatchMode):
    """Notes each operation that a tensor of the host takes part in beside one of the device, and counts launches."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [it for it in tree_leaves((args, kwargs, result)) if isinstance(it, Tensor)]
        kinds = {it.device.type for it in tensors}
        if "cuda" in kinds:
            name = str(function).removeprefix("aten.")
            if name.split(".")[0] not in _NO_KERNEL and not name.startswith("prim"):
                self.launches[name] += 1
            # _to_copy is the way to the device, which nobody waits for
            if len(kinds) > 1 and not name.startswith("_to_copy"):
                self.found.append(f"{name} at {_place()}")
        return result


def _place() -> str:
    ours = [it for it in traceback.extract_stack() if "/partialfc/" in it.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"


@contextmanager
def fake_cuda(world_size: int) -> Iterator[FakeTensorMode]:
    """Rank 0 of `world_size`, whose collectives do nothing; yields the mode in which tensors are fake."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * _KINDS).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[_CUDA] = guards[_CUDA] or guards[_META]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        # Pinned memory is CUDA's own: here it is any memory of the host.
        with mock.patch.object(Tensor, "pin_memory", lambda self, *_: self):
            yield FakeTensorMode(allow_non_fake_inputs=True)
    finally:
        dist.destroy_process_group()
