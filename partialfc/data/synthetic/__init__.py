"""Built-in data: synthetic identities, packed by the real packer."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec

from partialfc.config import SyntheticData
from partialfc.data import images
from partialfc.data.packs.pack_writer import UNFINISHED, write_pack
from partialfc.data.packs.pairs import write_pairs
from partialfc.data.synthetic.render import render_image
from partialfc.errors import InputError
from partialfc.runtime.files import atomic_write, file_lock
from partialfc.runtime.platform import cpu_count

_FOLDS = 10
_QUALITY = 90  # JPEG quality
_CHUNK = 50  # images that a process generates at a time

ImageId = tuple[int, int]  # identity and number of the image


def ensure_pack(folder: Path, config: SyntheticData) -> None:
    """Generate train.rec and unseen.bin into `folder` unless a pack exists; of several processes, one does it.

    The settings are stored in synthetic.json. A pack without this file belongs to the user and is not
    modified.

    Raises:
        InputError: If the existing pack was generated with different settings.
    """
    settings = msgspec.json.encode(config).decode()
    facts = folder / "synthetic.json"
    if _has_pack(folder, facts, settings):  # it may be read-only
        return
    with file_lock(folder / ".lock"):
        if not _has_pack(folder, facts, settings):
            _generate(folder, config)
            with atomic_write(facts) as temporary:
                temporary.write_text(settings, encoding="utf-8")


def _has_pack(folder: Path, facts: Path, settings: str) -> bool:
    """Return True if there is a complete pack, of these settings if it was generated."""
    if facts.exists() and (found := facts.read_text(encoding="utf-8")) != settings:
        raise InputError(
            f"{facts}: generated with {found}, the recipe has {settings}; choose another data.path"
        )
    return any(folder.glob("*.rec")) and not (folder / UNFINISHED).exists()


def _generate(folder: Path, config: SyntheticData) -> None:
    listed = _make_pairs(config)
    shown = [picture for pair in listed for picture in pair]
    pictures = [(label, image) for label in range(config.identities) for image in range(config.images)]
    # Spawned: a process with a process group and threads must not be forked.
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        draw = partial(_render_jpeg, config)
        encoded = list(pool.map(draw, shown, chunksize=_CHUNK))
        write_pairs(folder / "unseen.bin", encoded, [first[0] == second[0] for first, second in listed])
        drawn = pool.map(draw, pictures, chunksize=_CHUNK)
        samples = ((label, picture) for (label, _), picture in zip(pictures, drawn, strict=True))
        write_pack(folder, samples, num_classes=config.identities, size=config.size)


def _render_jpeg(config: SyntheticData, image_id: ImageId) -> bytes:
    identity, image = image_id
    pixels = render_image(config.seed, identity, image, size=config.size, difficulty=config.difficulty)
    return images.encode_jpeg(pixels, _QUALITY)


def _make_pairs(config: SyntheticData) -> list[tuple[ImageId, ImageId]]:
    """Return ten folds of pairs, half of them of the same identity. No identity occurs in two folds or in training."""
    per_fold = config.pairs // _FOLDS
    return [pair for fold in range(_FOLDS) for pair in _make_fold_pairs(config, fold, per_fold)]


def _make_fold_pairs(config: SyntheticData, fold: int, count: int) -> Iterator[tuple[ImageId, ImageId]]:
    mine = range(config.identities + fold, config.identities + config.unseen, _FOLDS)
    for pair in range(count):
        identity = other = mine[pair % len(mine)]
        if pair >= count // 2:
            other = mine[(pair + 1 + pair // len(mine) % (len(mine) - 1)) % len(mine)]
        yield (identity, 2 * pair), (other, 2 * pair + 1)
