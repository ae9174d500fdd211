"""Embeddings of many faces, in batches of one size."""

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray
from partialfc.inference.recognizer import Recognizer, check_finite


def embed_iterable(
    recognizer: Recognizer, images: Iterable[ImageArray], *, first: int = 0
) -> NDArray[np.float32]:
    """Return L2-normalized embeddings `[n, D]` of aligned faces.

    The last batch is padded, so that an embedding does not depend on the number of images.

    Raises:
        InputError: If an embedding is not finite; the message contains the index of the image, counted
            from `first`.
    """
    coming, found = iter(images), []
    while pixels := list(islice(coming, recognizer.batch_size)):
        filled = pixels + [pixels[0]] * (recognizer.batch_size - len(pixels))
        found.append(recognizer.embed_unchecked(filled)[: len(pixels)])
        check_finite(found[-1], first=first + sum(map(len, found[:-1])))
    return np.concatenate(found)
