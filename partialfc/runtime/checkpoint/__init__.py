"""Checkpoints: the state of a run in folders that are there whole or not at all, checked before anything of them is used,
loadable at any number of ranks. Nothing in them is executed: safetensors, and a JSON file with all digests.
"""

from partialfc.runtime.checkpoint.folder import newest
from partialfc.runtime.checkpoint.manager import WORDS, Checkpoints, Found, read_part, read_rows
from partialfc.runtime.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from partialfc.runtime.checkpoint.state_snapshot import State
from partialfc.runtime.checkpoint.writer import Outcome

__all__ = [
    "MANIFEST",
    "WORDS",
    "Checkpoints",
    "Found",
    "Manifest",
    "Outcome",
    "State",
    "newest",
    "read_manifest",
    "read_part",
    "read_rows",
]
