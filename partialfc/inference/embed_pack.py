"""Embed all images of a pack, block by block, and resume after an interruption."""

from pathlib import Path

import msgspec

from partialfc.data import RecordDataset
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.data.images import ImageArray
from partialfc.data.stored_embeddings import EmbeddingsInfo, open_array
from partialfc.inference.batching import embed_iterable
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime.files import file_lock
from partialfc.runtime.progress import map_in_threads, progress_bar

_BLOCK = 1024  # images


def embed_pack(
    recognizer: Recognizer, weights: Path, pack: Path, out: Path, *, progress: bool = False
) -> int:
    """Write the embeddings of a pack's images to the folder `out`, for StoredEmbeddings.

    An interrupted call is resumed if weights, precision and pack are the same. Memory does not grow with the
    pack.

    Args:
        recognizer: Model.
        weights: Source of the model.
        pack: Pack to embed.
        out: Folder to write to.
        progress: Whether to show a progress bar.

    Returns:
        Number of images.

    Raises:
        InputError: If an image cannot be read, or its embedding is not finite.
    """
    dataset = RecordDataset(pack, image_size=recognizer.network.input_size)

    def read(image: int) -> ImageArray:
        pixels: ImageArray = dataset[image][0]
        return pixels

    width = recognizer.embed([read(0)]).shape[1]
    expected = EmbeddingsInfo(pack_fingerprint(pack), recognizer.fingerprint(weights), len(dataset), width)
    with file_lock(out / ".lock", busy_message=f"{out}: another process is embedding into it"):
        done = _num_done(out, expected)
        stored = open_array(out, expected, create=not done)
        for start in progress_bar(range(done, len(dataset), _BLOCK), "embedding", enabled=progress):
            stop = min(start + _BLOCK, len(dataset))
            stored[start:stop] = embed_iterable(
                recognizer, map_in_threads(read, range(start, stop)), first=start
            )
            stored.flush()
            msgspec.structs.replace(expected, done=stop).write(out)
    return len(dataset)


def _num_done(out: Path, info: EmbeddingsInfo) -> int:
    """Return the number of embedded images; 0 if they are missing, or of other sources."""
    before = EmbeddingsInfo.read(out)
    if before is not None and msgspec.structs.replace(before, done=0) == info:
        return before.done
    info.write(out)  # before the old array is overwritten
    return 0
