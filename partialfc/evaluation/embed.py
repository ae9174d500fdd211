"""Embeddings of the images of sets, by all ranks together."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.data.augment import network_input
from partialfc.data.images import Pixels
from partialfc.evaluation.sets import ImageSet
from partialfc.runtime import comm
from partialfc.runtime.comm import Ranks


class Network(Protocol):
    """float images [b, 3, H, H] in [-1, 1], H its input_size, -> embeddings [b, D]: a backbone, or what stands for one."""

    input_size: int
    training: bool

    def __call__(self, images: Tensor, /) -> Tensor: ...

    def eval(self) -> object: ...

    def train(self, mode: bool = True) -> object: ...


Embeddings = dict[str, Tensor]  # float32 [n, D] of each set's images, by its name


class EvaluationStopped(Exception):
    """An evaluation that was given up, on all ranks; `signal` is the number of what asked for it."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


Progress = Callable[[str, range], Iterable[int]]


def _never() -> int:
    return 0


def _unseen(name: str, turns: range) -> Iterable[int]:
    return turns


def embed_sets(
    network: Network,
    sets: Iterable[ImageSet],
    ranks: Ranks,
    *,
    batch: int,
    autocast: AbstractContextManager[object],
    stop: Callable[[], int] = _never,
    progress: Progress = _unseen,
) -> Embeddings:
    """Embeddings of the images of each set, see EvaluationSet.evaluate, the same on every rank.

    stop: asked after each batch; where it is not 0 on some rank, all raise EvaluationStopped. CollectiveInputError where an
    image cannot be read. progress: given a set's name
    and its batches, yields these, and may show how far they are.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), autocast:
            return {it.name: _embedded(network, it, ranks, batch, stop, progress) for it in sets}
    finally:
        network.train(was_training)


def mirror_sum(network: Network, pixels: Tensor) -> Tensor:
    """Embeddings [b, D] of uint8 images [b, H, H, 3]: each the sum over the image and its mirror image, not normalised."""
    return network(network_input(pixels)) + network(network_input(pixels.flip(2)))


def embed_faces(
    network: Network,
    faces: Sequence[Pixels],
    device: torch.device,
    *,
    batch: int,
    autocast: AbstractContextManager[object],
) -> NDArray[np.float32]:
    """Unit embeddings [n, D] of uint8 images [H, H, 3] of the network's size, by this rank alone. The network is in
    evaluation mode.
    """
    parts = []
    with torch.no_grad(), autocast:
        for place in range(0, len(faces), batch):
            pixels = torch.from_numpy(np.stack(faces[place : place + batch])).to(device)
            parts.append(normalize(mirror_sum(network, pixels).float()).cpu())
    return torch.cat(parts).numpy()


def _embedded(
    network: Network, images: ImageSet, ranks: Ranks, batch: int, stop: Callable[[], int], progress: Progress
) -> Tensor:
    """float32 embeddings [n, D] of all images, on every rank, not normalised.

    The images go through in fixed blocks of `batch`, the last one padded, dealt out to the ranks in turn:
    what a block computes does not depend on the number of ranks. While one is computed the next is decoded.
    """
    blocks = -(-len(images) // batch)
    turns = -(-blocks // ranks.size)
    parts = []
    with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:  # decoding releases the interpreter

        def begun(turn: int) -> list[Future[Pixels]]:
            first = (turn * ranks.size + ranks.rank) * batch
            places = range(first, min(first + batch, len(images)))
            return [pool.submit(images.pixels, place, network.input_size) for place in places]

        ahead = begun(0)
        for turn in progress(images.name, range(turns)):
            coming, ahead = ahead, begun(turn + 1)
            with comm.fail_on_all_ranks(ranks):
                block = _decoded(coming, batch, network.input_size, pinned=ranks.device.type == "cuda")
            parts.append(mirror_sum(network, block.to(ranks.device, non_blocking=True)))
            if asked := max(comm.of_all_ranks(stop(), ranks.host)):
                raise EvaluationStopped(asked)
    everyone = comm.gather_rows(torch.cat(parts).float(), ranks.group)
    in_turn = everyone.view(ranks.size, turns, batch, -1).transpose(0, 1)
    return in_turn.reshape(ranks.size * turns * batch, -1)[: len(images)]


def _decoded(coming: Sequence[Future[Pixels]], batch: int, size: int, *, pinned: bool) -> Tensor:
    """uint8 [batch, H, H, 3]: the images that are being decoded, then black ones."""
    block = torch.zeros(batch, size, size, 3, dtype=torch.uint8, pin_memory=pinned)
    for row, pixels in enumerate(coming):
        block[row] = torch.from_numpy(pixels.result())
    return block
