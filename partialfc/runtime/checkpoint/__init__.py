"""Checkpoints: verified before use, published atomically, loadable at any world size.

Nothing in a checkpoint is executed. It consists of safetensors files and a JSON file with all digests.
"""

from partialfc.runtime.checkpoint.folder import newest_checkpoint
from partialfc.runtime.checkpoint.manager import (
    RESUME_KEYWORDS,
    CheckpointManager,
    VerifiedCheckpoint,
    read_rows,
    read_tensors,
)
from partialfc.runtime.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from partialfc.runtime.checkpoint.state_snapshot import NestedState
from partialfc.runtime.checkpoint.writer import SaveResult

__all__ = [
    "MANIFEST",
    "RESUME_KEYWORDS",
    "CheckpointManager",
    "Manifest",
    "NestedState",
    "SaveResult",
    "VerifiedCheckpoint",
    "newest_checkpoint",
    "read_manifest",
    "read_rows",
    "read_tensors",
]
