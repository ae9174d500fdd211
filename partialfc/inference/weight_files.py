"""Files of weights: .pth, .pt or safetensors. Nothing in a file is executed."""

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from partialfc.errors import InputError
from partialfc.input_files import describe_other_content, read_head, require_file
from partialfc.runtime.error_messages import format_error

# Keys of the weights in third-party files, the first that exists.
_STATE_DICT_KEYS = (
    "state_dict_backbone",
    "state_dict",
    "backbone",
    "model",
    "net",
    "network",
    "model_state_dict",
)
_DTYPES = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
     torch.int64, torch.bool)
)  # fmt: skip
_ZIP = b"PK\x03\x04"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return names and tensors of an existing file, on the CPU.

    Raises:
        InputError: If it is anything else, or damaged.
        OSError: If it cannot be read.
    """
    head = read_head(path)
    if problem := describe_other_content(head):
        raise InputError(f"{path}: expected weights (.pth, .pt or .safetensors), found {problem}")
    if path.suffix == ".safetensors" or _is_safetensors(head):
        tensors = _read_safetensors(path)
    else:
        tensors = _read_pth(path)
    for name, tensor in tensors.items():
        if kind := find_unusable_kind(tensor):
            raise InputError(
                f"{path}: {name}: expected a dense tensor of ordinary floats or integers, got {kind}"
            )
    return tensors


def find_unusable_kind(tensor: Tensor) -> str | None:
    """Return why a tensor cannot be a network's weight, or None. Conversion would fail, or drop a part of it."""
    if tensor.is_meta:
        return "one on the meta device, without values"
    if tensor.layout != torch.strided:
        return f"a sparse one ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"a quantized one ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.dtype not in _DTYPES:
        return str(tensor.dtype).removeprefix("torch.")
    return None


def check_zip(path: Path) -> None:
    """Raise InputError if torch.save's zip archive is incomplete or damaged; torch.load does not check its members."""
    require_file(path)
    if not zipfile.is_zipfile(path):
        if read_head(path).startswith(_ZIP):
            raise InputError(
                f"{path}: incomplete: {path.stat().st_size} bytes of torch.save's zip archive without its end; copy it again"
            )
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: damaged: {format_error(error)[:100]}") from None
    if damaged is not None:
        raise InputError(f"{path}: damaged: {damaged} is not what was written")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and not head.startswith(_ZIP)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        reason = format_error(error)
        if "not fully covered" in reason or "invalid header length" in reason:
            raise InputError(
                f"{path}: incomplete: {path.stat().st_size} bytes, fewer than its header lists; copy it again"
            ) from None
        raise InputError(f"{path}: not safetensors: {reason[:100]}") from None


def _read_pth(path: Path) -> dict[str, Tensor]:
    check_zip(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or malicious file can raise any exception
        raise InputError(f"{path}: expected weights only: {_explain_load_error(error)}") from None
    found = _find_state_dict(content, path)
    return {str(name): tensor for name, tensor in found.items()}


def _explain_load_error(error: Exception) -> str:
    text = format_error(error)
    if found := re.search(r"Unsupported (?:global|class).*?GLOBAL ([\w.]+)", text):
        return f"the file contains an object of {found[1]}; save its state_dict() instead"
    if "unexpected EOF" in text or isinstance(error, EOFError):
        return "the file is incomplete; copy it again"
    return "the file is no output of torch.save, or damaged" if "weights_only" in text else text[:100]


def _find_state_dict(content: Any, path: Path) -> Mapping[Any, Tensor]:
    """Return the dict of tensors in what was saved: itself, under a known key, or the only one."""
    if _is_state_dict(content):
        return content
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {type(content).__name__}, expected names and tensors")
    for name in _STATE_DICT_KEYS:
        if isinstance(content.get(name), dict):
            return _find_state_dict(content[name], path)
    found = [name for name, it in content.items() if _is_state_dict(it)]
    if len(found) == 1:
        return content[found[0]]
    keys = ", ".join(map(repr, list(content)[:5]))
    raise InputError(
        f"{path}: a dict with the keys {keys}, expected names and tensors, or one dict of them"
        if content
        else f"{path}: a dict without contents, expected names and tensors"
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict) and bool(content) and all(isinstance(it, Tensor) for it in content.values())
    )
