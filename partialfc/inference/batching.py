"""Embeddings of many faces, in batches of one size."""

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import Pixels
from partialfc.inference.recognizer import Recognizer, check_finite


def embedded(recognizer: Recognizer, faces: Iterable[Pixels], *, first: int = 0) -> NDArray[np.float32]:
    """Unit embeddings [n, D] of aligned faces. The last batch is filled up: how an image is embedded does not depend on
    how many there are. InputError where an embedding is not finite, which names the image, counted from `first`.
    """
    coming, found = iter(faces), []
    while pixels := list(islice(coming, recognizer.batch)):
        filled = pixels + [pixels[0]] * (recognizer.batch - len(pixels))
        found.append(recognizer.embed_unchecked(filled)[: len(pixels)])
        check_finite(found[-1], first=first + sum(map(len, found[:-1])))
    return np.concatenate(found)
