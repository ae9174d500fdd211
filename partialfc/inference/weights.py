"""Backbone weights from a file: a run, a checkpoint, .pth, .pt or safetensors. Nothing in a file is executed."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from partialfc.errors import InputError
from partialfc.input_files import require_file
from partialfc.runtime import checkpoint
from partialfc.runtime.exit_codes import format_error

# Parts of a run's checkpoint: the trained weights, and their EMA if the run keeps one.
BACKBONE, EMA = "backbone", "average"

# Keys of the weights in third-party files.
_STATE_DICT_KEYS = (
    "state_dict_backbone",
    "state_dict",
    "backbone",
    "model",
)
_DTYPES = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
     torch.int64, torch.bool)
)  # fmt: skip
_MAX_LISTED = 5  # names per kind of mismatch


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return names and tensors, on the CPU; of a run with an EMA, the averages.

    Args:
        path: Folder of a run (its latest checkpoint), a checkpoint, or a file.

    Returns:
        Tensors by name.

    Raises:
        FileNotFoundError: If it does not exist.
        InputError: If it is anything else, or damaged.
        OSError: If it cannot be read.
    """
    if path.is_dir():
        checkpointed = resolve_checkpoint(path)
        return checkpoint.read_tensors(checkpointed, EMA) or checkpoint.read_tensors(checkpointed, BACKBONE)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not found; expected weights: a run, a checkpoint, .pth, .pt or .safetensors"
        )
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    for name, tensor in tensors.items():
        if kind := _unusable(tensor):
            raise InputError(
                f"{path}: {name}: expected a dense tensor of ordinary floats or integers, got {kind}"
            )
    return tensors


def resolve_checkpoint(path: Path) -> Path:
    """Return the latest checkpoint of a run's folder; any other path unchanged."""
    return checkpoint.newest_checkpoint(path / "checkpoints") or path


def load_weights(backbone: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load `weights` into `backbone`.

    Raises:
        InputError: If tensors are missing, unexpected or of different shapes; lists each kind.
    """
    check_weights(backbone, weights, source)
    backbone.load_state_dict(weights)


def check_weights(backbone: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise InputError if names or shapes differ. The backbone may be on the meta device."""
    own = backbone.state_dict()
    misfits = {
        "missing": own.keys() - weights.keys(),
        "surplus": weights.keys() - own.keys(),
        "of a different shape": {
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own.keys() & weights.keys()
            if own[name].shape != weights[name].shape
        },
    }
    misfits["of a different type"] = {
        f"{name} {str(weights[name].dtype).removeprefix('torch.')}"
        for name in own.keys() & weights.keys()
        if own[name].is_floating_point() != weights[name].is_floating_point()
    }
    if any(misfits.values()):
        told = (f"{len(names)} {kind}: {_format_names(names)}" for kind, names in misfits.items() if names)
        raise InputError(f"{source}: weights of a different network; {'; '.join(told)}")


def _format_names(names: set[str]) -> str:
    return ", ".join(sorted(names)[:_MAX_LISTED]) + (" ..." if len(names) > _MAX_LISTED else "")


def _unusable(tensor: Tensor) -> str | None:
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    require_file(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not safetensors: {format_error(error)[:100]}") from None


def check_zip(path: Path) -> None:
    """Raise InputError if a member of torch.save's zip archive is damaged; torch.load does not check it."""
    require_file(path)
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: damaged: {format_error(error)[:100]}") from None
    if damaged is not None:
        raise InputError(f"{path}: damaged: {damaged} is not what was written")


def _read_pth(path: Path) -> dict[str, Tensor]:
    check_zip(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or malicious file can raise any exception
        raise InputError(f"{path}: expected weights only: {format_error(error)[:100]}") from None
    for name in _STATE_DICT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not (isinstance(content, dict) and content and all(isinstance(it, Tensor) for it in content.values())):
        raise InputError(f"{path}: a {type(content).__name__}, expected names and tensors")
    # Prefix of DistributedDataParallel.
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
