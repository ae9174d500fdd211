"""Embeddings of all images of a pack, block by block: what was interrupted is gone on with."""

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
    """Write the embeddings of a pack's images to the folder `out`, for PackEmbeddings; returns how many. weights: where the
    recognizer is from; with other weights, another precision or another pack an interrupted call is not gone on with. Memory does not
    grow with the pack. InputError names an image that cannot be read, or whose embedding is not finite.
    """
    dataset = RecordDataset(pack, image_size=recognizer.network.input_size)

    def read(image: int) -> ImageArray:
        pixels: ImageArray = dataset[image][0]
        return pixels

    width = recognizer.embed([read(0)]).shape[1]
    wanted = EmbeddingsInfo(pack_fingerprint(pack), recognizer.fingerprint(weights), len(dataset), width)
    with file_lock(out / ".lock", busy_message=f"{out}: another process embeds into it"):
        done = _num_done(out, wanted)
        stored = open_array(out, wanted, create=not done)
        for start in progress_bar(range(done, len(dataset), _BLOCK), "embedding", enabled=progress):
            stop = min(start + _BLOCK, len(dataset))
            stored[start:stop] = embed_iterable(
                recognizer, map_in_threads(read, range(start, stop)), first=start
            )
            stored.flush()
            msgspec.structs.replace(wanted, done=stop).write(out)
    return len(dataset)


def _num_done(out: Path, info: EmbeddingsInfo) -> int:
    """How many images are embedded; 0 where nothing is, or of others."""
    before = EmbeddingsInfo.read(out)
    if before is not None and msgspec.structs.replace(before, done=0) == info:
        return before.done
    info.write(out)  # before the numbers of others are overwritten
    return 0
