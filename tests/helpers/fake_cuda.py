"""CUDA tensors without a GPU: they know shape, type and device, hold no numbers, and refuse to meet tensors of the host.

torch's FakeTensorMode makes them. A CPU build of torch has no device guard for CUDA, so the one of `meta`, which does
nothing, is entered in its place; it changes nothing for tensors of the host. Streams and events do nothing, either.
"""

import ctypes
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from partialfc.head import buffers, neighbors
from partialfc.head.kernels import triton_centers, triton_images, triton_logits, triton_rows, triton_sampling
from partialfc.head.storage import host

DEVICE = "cuda:0"
_CUDA, _META, _KINDS = 1, 14, 20  # of c10::DeviceType
_NO_KERNEL = {
    "view", "slice", "select", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "alias", "detach",
    "as_strided", "_unsafe_view", "unbind", "split", "is_pinned", "lift_fresh", "empty", "empty_like", "new_empty",
    "empty_strided", "device", "_pin_memory",
}  # fmt: skip
_NOT_FAKED = {"_fused_sgd_"}  # in place, and unknown to fake tensors
_PRODUCTS = {"mm", "addmm", "addmm_"}


class Launches(TorchDispatchMode):
    """Counts what is launched on the device, and notes what would hold the host up: an operation that a tensor of the
    host takes part in beside one of the device, but for copies of pinned memory that nobody waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.crossings: list[str] = []
        self.precisions: set[tuple[torch.dtype, str]] = (
            set()
        )  # of products: the factors' type, and how float32 is taken

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.").split(".")[0]
        result = None if name in _NOT_FAKED else function(*args, **(kwargs or {}))
        tensors = [it for it in tree_leaves((args, kwargs, result)) if isinstance(it, Tensor)]
        kinds = {it.device.type for it in tensors}
        if "cuda" in kinds:
            if name not in _NO_KERNEL and not name.startswith("prim"):
                self.launched[name] += 1
            if name in _PRODUCTS:
                self.precisions.add((tensors[1].dtype, torch.backends.cuda.matmul.fp32_precision))
            if len(kinds) > 1 and not _of_pinned(name, args, kwargs or {}, tensors):
                self.crossings.append(f"{name} at {_place()}")
        return result

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Of a kernel of ours."""
        self.launched[kernel.__name__] += 1
        assert all(size > 0 for size in grid)
        hosts = [
            it
            for it in arguments
            if isinstance(it, Tensor) and it.device.type != "cuda" and not _is_pinned(it)
        ]
        self.crossings += [f"{kernel.__name__} at {_place()}"] * len(hosts)


_pinned: dict[int, Any] = {}  # storages, by their address


def _pin(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    _pinned[storage._cdata] = storage
    return tensor


def _is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage()._cdata in _pinned


def _of_pinned(name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> bool:
    on_host = [it for it in tensors if it.device.type == "cpu"]
    unwaited = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2] is True)
    return name in ("copy_", "_to_copy") and unwaited and all(map(_is_pinned, on_host))


def _place() -> str:
    ours = [it for it in traceback.extract_stack() if "/partialfc/" in it.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"


class _Nothing:
    """A stream, or an event, that does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record_event(self, *_: Any) -> "_Nothing":
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextmanager
def fake_cuda(world_size: int) -> Iterator[FakeTensorMode]:
    """Rank 0 of `world_size`, whose collectives do nothing; yields the mode in which tensors are fake."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * _KINDS).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[_CUDA] = guards[_CUDA] or guards[_META]
    fake, unnoted = FakeTensorMode(allow_non_fake_inputs=True), Launches()

    def sent(source: Tensor, device: torch.device) -> Tensor:
        assert _is_pinned(source)
        with fake:
            return torch.empty(source.shape, dtype=source.dtype, device=device)

    def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return _pin(torch.empty(shape, dtype=dtype))

    class AtOnce(ThreadPoolExecutor):
        def submit(self, function, /, *args, **kwargs):
            done: Future[Any] = Future()
            with fake:
                done.set_result(function(*args, **kwargs))
            return done

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    with ExitStack() as stack:
        stack.callback(_pinned.clear)
        stack.callback(dist.destroy_process_group)
        patches = [
            (buffers, "pinned", pinned),
            (neighbors, "pinned", pinned),
            (host, "pinned_exactly", pinned),
            (host, "ThreadPoolExecutor", AtOnce),
            (Tensor, "pin_memory", lambda self, *_: _pin(self)),
            (Tensor, "record_stream", lambda self, *_: None),
            (buffers, "copy_pinned", sent),
            (triton_rows, "launch", unnoted.launch),
            (torch.cuda, "Stream", _Nothing),
            (torch.cuda, "stream", lambda *_: nullcontext()),
            (torch.cuda, "current_stream", lambda *_: _Nothing()),
        ]
        for owner, name, instead in patches:
            stack.enter_context(mock.patch.object(owner, name, instead))
        yield fake
        assert not unnoted.crossings


@contextmanager
def launches(fake: FakeTensorMode) -> Iterator[Launches]:
    """Within the block, on fake tensors, what is launched is noted."""
    found = Launches()
    with ExitStack() as stack:
        for module in (triton_logits, triton_rows, triton_images, triton_centers, triton_sampling):
            stack.enter_context(mock.patch.object(module, "launch", found.launch))
        stack.enter_context(fake)
        stack.enter_context(found)
        yield found
