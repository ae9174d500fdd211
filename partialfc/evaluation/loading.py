"""An evaluation set of whatever kind, from a path."""

from pathlib import Path

from partialfc.errors import InputError
from partialfc.evaluation.ijb import is_ijb, load_ijb
from partialfc.evaluation.pairs import load_pairs
from partialfc.evaluation.sets import EvaluationSet


def load_set(path: Path) -> EvaluationSet:
    """A .bin of pairs, or a folder of IJB-B or IJB-C. InputError where it is neither, or damaged."""
    if not path.is_dir():
        return load_pairs(path)
    if is_ijb(path):
        return load_ijb(path)
    raise InputError(
        f"{path}: no evaluation set; wanted a .bin file, or a folder of IJB with meta/ and loose_crop/"
    )
