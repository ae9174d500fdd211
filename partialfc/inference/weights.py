"""Backbone weights from a run, a checkpoint or a file."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from partialfc.inference.weight_files import read_tensors
from partialfc.inference.weight_names import match_names
from partialfc.runtime import checkpoint

# Parts of a run's checkpoint: the trained weights, and their EMA if the run keeps one.
BACKBONE, EMA = "backbone", "average"


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
    return read_tensors(path)


def resolve_checkpoint(path: Path) -> Path:
    """Return the latest checkpoint of a run's folder; any other path unchanged."""
    return checkpoint.newest_checkpoint(path / "checkpoints") or path


def load_weights(backbone: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load `weights` into `backbone`.

    Raises:
        InputError: If tensors are missing, unexpected or of different shapes; lists each kind.
    """
    backbone.load_state_dict(match_names(backbone.state_dict(), weights, source))


def check_weights(backbone: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise InputError in the cases of `load_weights`. The backbone may be on the meta device."""
    match_names(backbone.state_dict(), weights, source)
