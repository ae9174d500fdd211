"""Embed all images in a folder, block by block, and resume after an interruption."""

import hashlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from partialfc.data import images
from partialfc.inference.batching import embed_iterable
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime.files import atomic_write, file_fingerprint, file_lock
from partialfc.runtime.progress import map_in_threads, progress_bar

_BLOCK = 1024  # images


def embed_folder(
    recognizer: Recognizer, weights: Path, folder: Path, out: Path, *, progress: bool = False
) -> int:
    """Write `names` `[n]` (sorted relative paths) and unit `embeddings` `[n, D]`, float32, to the .npz `out`.

    An interrupted call is resumed if weights, precision and images are the same.

    Args:
        recognizer: Model.
        weights: Source of the model.
        folder: Folder of images.
        out: File to write.
        progress: Whether to show a progress bar.

    Returns:
        Number of images.

    Raises:
        InputError: If an image cannot be read, or the folder has no images.
    """
    paths = images.list_images(folder)
    read = partial(images.read, size=recognizer.network.input_size)
    parts = out.with_name(f".{out.name}.parts")
    with file_lock(
        out.with_name(f".{out.name}.lock"), busy_message=f"{out}: another process is embedding into it"
    ):
        _prepare_block_folder(parts, [recognizer.fingerprint(weights), *map(file_fingerprint, paths)])
        blocks = list(_iter_missing_blocks(parts, len(paths)))
        for place in progress_bar(blocks, "embedding", enabled=progress):
            with atomic_write(parts / f"{place}.npy") as temporary, temporary.open("wb") as file:
                np.save(
                    file,
                    embed_iterable(
                        recognizer, map_in_threads(read, paths[place : place + _BLOCK]), first=place
                    ),
                )
        whole = np.concatenate([np.load(parts / f"{place}.npy") for place in range(0, len(paths), _BLOCK)])
        names = [str(path.relative_to(folder)) for path in paths]
        with atomic_write(out) as temporary, temporary.open("wb") as file:
            np.savez(file, names=np.array(names), embeddings=whole)
        shutil.rmtree(parts)
    out.with_name(f".{out.name}.lock").unlink()
    return len(paths)


def _prepare_block_folder(parts: Path, sources: list[str]) -> None:
    """Return the folder of blocks, cleared if its blocks are of other sources."""
    facts = hashlib.sha256("\n".join(sources).encode()).hexdigest()
    if parts.exists() and (not (parts / "sources").exists() or (parts / "sources").read_text() != facts):
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    with atomic_write(parts / "sources") as temporary:
        temporary.write_text(facts)


def _iter_missing_blocks(parts: Path, count: int) -> Iterator[int]:
    return (place for place in range(0, count, _BLOCK) if not (parts / f"{place}.npy").exists())
