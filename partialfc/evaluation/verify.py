"""Verification of a backbone on .bin sets, on all ranks."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.data import images
from partialfc.data.augment import network_input
from partialfc.evaluation.pairs import Pairs
from partialfc.runtime import comm
from partialfc.runtime.comm import Ranks


class Network(Protocol):
    """float images [b, 3, H, H] in [-1, 1], H its input_size, -> embeddings [b, D]: a backbone, or what stands for one."""

    input_size: int
    training: bool

    def __call__(self, images: Tensor, /) -> Tensor: ...

    def eval(self) -> object: ...

    def train(self, mode: bool = True) -> object: ...


Similarities = dict[str, NDArray[np.float64]]  # [P] of each set's pairs, by its name


def verify(
    backbone: Network,
    sets: Iterable[Pairs],
    ranks: Ranks,
    *,
    batch: int,
    autocast: AbstractContextManager[object],
) -> Similarities:
    """Of the pairs of each set, the same on every rank.

    The similarity of two images is the cosine of their embeddings, each the sum over the image and its mirror
    image. CollectiveInputError where an image cannot be read.
    """
    was_training = backbone.training
    backbone.eval()
    found = {}
    with torch.no_grad(), autocast:
        for pairs in sets:
            embeddings = _embedded(backbone, pairs, ranks, batch=batch)
            similarity = (embeddings[0::2] * embeddings[1::2]).sum(1).double().cpu().numpy()
            found[pairs.name] = similarity
    backbone.train(was_training)
    return found


def _embedded(backbone: Network, pairs: Pairs, ranks: Ranks, *, batch: int) -> Tensor:
    """Unit embeddings [2 P, D] of all images, on every rank.

    The images go through in fixed blocks of `batch`, the last one padded, dealt out to the ranks in turn:
    what a block computes does not depend on the number of ranks.
    """
    blocks = -(-len(pairs.images) // batch)
    turns = -(-blocks // ranks.size)
    parts = []
    with comm.fail_on_all_ranks(ranks), ThreadPoolExecutor(2) as pool:  # decoding releases the interpreter
        for turn in range(turns):
            first = (turn * ranks.size + ranks.rank) * batch
            block = _decoded(
                pairs, range(first, min(first + batch, len(pairs.images))), batch, backbone, pool
            )
            pixels = block.to(ranks.device)
            parts.append(backbone(network_input(pixels)) + backbone(network_input(pixels.flip(2))))
    everyone = comm.gather_rows(normalize(torch.cat(parts).float()), ranks.group)
    in_turn = everyone.view(ranks.size, turns, batch, -1).transpose(0, 1)
    return in_turn.reshape(ranks.size * turns * batch, -1)[: len(pairs.images)]


def _decoded(
    pairs: Pairs, places: Sequence[int], batch: int, backbone: Network, pool: ThreadPoolExecutor
) -> Tensor:
    """uint8 [batch, H, H, 3]: the images at `places`, then black ones."""

    def decode(place: int) -> images.Pixels:
        return pairs.pixels(place, backbone.input_size)

    block = np.zeros((batch, backbone.input_size, backbone.input_size, 3), np.uint8)
    for row, pixels in enumerate(pool.map(decode, places)):
        block[row] = pixels
    return torch.from_numpy(block)
