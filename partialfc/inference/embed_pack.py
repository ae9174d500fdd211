"""Embeddings of all images of a pack, block by block: what was interrupted is gone on with."""

from pathlib import Path

import msgspec

from partialfc.data import RecordDataset
from partialfc.data.fingerprint import fingerprint
from partialfc.data.images import Pixels
from partialfc.data.stored_embeddings import About, numbers
from partialfc.inference.batching import embedded
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime.files import locked
from partialfc.runtime.progress import in_order, tracked

_BLOCK = 1024  # images


def embed_pack(
    recognizer: Recognizer, weights: Path, pack: Path, out: Path, *, progress: bool = False
) -> int:
    """Write the embeddings of a pack's images to the folder `out`, for PackEmbeddings; returns how many. weights: where the
    recognizer is from; with other weights, another precision or another pack an interrupted call is not gone on with. Memory does not
    grow with the pack. InputError names an image that cannot be read, or whose embedding is not finite.
    """
    dataset = RecordDataset(pack, image_size=recognizer.network.input_size)

    def read(image: int) -> Pixels:
        pixels: Pixels = dataset[image][0]
        return pixels

    width = recognizer.embed([read(0)]).shape[1]
    wanted = About(fingerprint(pack), recognizer.fingerprint(weights), len(dataset), width)
    with locked(out / ".lock", busy=f"{out}: another process embeds into it"):
        done = _begun(out, wanted)
        stored = numbers(out, wanted, begin=not done)
        for start in tracked(range(done, len(dataset), _BLOCK), "embedding", shown=progress):
            stop = min(start + _BLOCK, len(dataset))
            stored[start:stop] = embedded(recognizer, in_order(read, range(start, stop)), first=start)
            stored.flush()
            msgspec.structs.replace(wanted, done=stop).write(out)
    return len(dataset)


def _begun(out: Path, wanted: About) -> int:
    """How many images are embedded; 0 where nothing is, or of others."""
    before = About.read(out)
    if before is not None and msgspec.structs.replace(before, done=0) == wanted:
        return before.done
    wanted.write(out)  # before the numbers of others are overwritten
    return 0
