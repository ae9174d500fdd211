"""Loading of evaluation sets of any kind from a path."""

from collections.abc import Sequence
from pathlib import Path

from partialfc.config import Config
from partialfc.errors import InputError
from partialfc.evaluation.gallery import is_gallery, load_gallery
from partialfc.evaluation.group import SetGroup
from partialfc.evaluation.ijb import is_ijb, load_ijb
from partialfc.evaluation.pairs import load_pairs
from partialfc.evaluation.sets import EvaluationSet

_FOLDERS = "several, of IJB (meta/ and loose_crop/), of gallery/ and probe/, or of TinyFace"


def load_set(path: Path, *, skip_unusable: bool = False) -> EvaluationSet:
    """Load a .bin of pairs, a folder of several (one group, such as RFW), IJB-B or IJB-C, a gallery, or TinyFace.

    Args:
        path: Path of the set.
        skip_unusable: Whether unusable images of IJB are left out, instead of refusing the set.

    Returns:
        The evaluation set.

    Raises:
        InputError: If it is anything else, or damaged.
    """
    if not path.is_dir():
        return load_pairs(path)
    if is_ijb(path):
        return load_ijb(path, skip_unusable=skip_unusable)
    if is_gallery(path):
        return load_gallery(path)
    files = sorted(path.glob("*.bin"))
    if len(files) > 1:
        return SetGroup(path.resolve().name, [load_pairs(it) for it in files])
    raise InputError(f"{path}: expected a .bin file, or a folder of {_FOLDERS}")


def load_sets(paths: Sequence[Path], *, skip_unusable: bool = False) -> list[EvaluationSet]:
    """Load the sets at `paths`; `skip_unusable` as of `load_set`.

    Returns:
        The evaluation sets, in the same order.

    Raises:
        InputError: If one cannot be loaded, or two have the same name.
    """
    found = [load_set(path, skip_unusable=skip_unusable) for path in paths]
    names = [it.name for it in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        places = ", ".join(str(path) for path, name in zip(paths, names, strict=True) if name == twice)
        raise InputError(f"{places}: two sets are named {twice}; expected unique names")
    return found


def evaluation_set_paths(config: Config) -> list[Path]:
    """Return a run's sets: every .bin in its data folder, and those of evaluation.sets."""
    return [*sorted(Path(config.data.path).glob("*.bin")), *map(Path, config.evaluation.sets)]
