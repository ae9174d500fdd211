"""Mean embedding of each class of a pack."""

import numpy as np
from numpy.typing import NDArray

from partialfc.data.stored_embeddings import StoredEmbeddings

_AT_ONCE = 1 << 13  # images


def compute_class_means(
    embeddings: StoredEmbeddings, labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.float32]:
    """Return L2-normalized means `[C, D]`, given the labels `[N]` of a pack's images; zero for classes without images.

    Memory: twice that.
    """
    means = np.zeros((num_classes, embeddings.embedding_size), np.float32)
    for start in range(0, len(labels), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(labels)))
        np.add.at(means, labels[rows], embeddings[rows])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means
