"""Embeddings of the images of evaluation sets, computed by all ranks."""

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
from partialfc.data.images import ImageArray
from partialfc.evaluation.sets import ImageSet
from partialfc.runtime import comm
from partialfc.runtime.comm import DistContext


class EmbeddingNetwork(Protocol):
    """Network that maps float images `[b, 3, H, H]` in [-1, 1], with H = input_size, to embeddings `[b, D]`."""

    input_size: int
    training: bool

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the embeddings of images."""

    def eval(self) -> object:
        """Switch to evaluation mode."""

    def train(self, mode: bool = True) -> object:
        """Switch to training mode, or to evaluation mode."""


Embeddings = dict[str, Tensor]  # float32 `[n, D]` by set name


class EvaluationStoppedError(Exception):
    """Evaluation that was stopped on all ranks; `signal` is the stop signal."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


Progress = Callable[[str, range], Iterable[int]]


def _no_stop_signal() -> int:
    return 0


def _unseen(name: str, turns: range) -> Iterable[int]:
    return turns


def embed_sets(
    network: EmbeddingNetwork,
    sets: Iterable[ImageSet],
    dist_ctx: DistContext,
    *,
    batch_size: int,
    autocast: AbstractContextManager[object],
    get_stop_signal: Callable[[], int] = _no_stop_signal,
    progress: Progress = _unseen,
) -> Embeddings:
    """Return the embeddings of the images of each set, see EvaluationSet.evaluate, equal on all ranks.

    Args:
        network: Network in evaluation mode.
        sets: Evaluation sets.
        dist_ctx: This rank and the others.
        batch_size: Images per forward pass of a rank.
        autocast: Context of the forward passes.
        get_stop_signal: Called after each batch; returns the stop signal of this rank, 0 if none.
        progress: Given the name of a set and its batches, yields these, and may show the progress.

    Raises:
        EvaluationStoppedError: If a rank has a stop signal.
        CollectiveInputError: If an image cannot be read.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), autocast:
            return {
                it.name: _embed_set(network, it, dist_ctx, batch_size, get_stop_signal, progress)
                for it in sets
            }
    finally:
        network.train(was_training)


def embed_with_flip(network: EmbeddingNetwork, pixels: Tensor) -> Tensor:
    """Return embeddings `[b, D]` of uint8 images `[b, H, H, 3]`: image plus mirror image, not normalized."""
    return network(network_input(pixels)) + network(network_input(pixels.flip(2)))


def embed_images(
    network: EmbeddingNetwork,
    images: Sequence[ImageArray],
    device: torch.device,
    *,
    batch_size: int,
    autocast: AbstractContextManager[object],
) -> NDArray[np.float32]:
    """Return L2-normalized embeddings `[n, D]` of uint8 images `[H, H, 3]` of the network's size, on this rank only.

    The network must be in evaluation mode.
    """
    parts = []
    with torch.no_grad(), autocast:
        for place in range(0, len(images), batch_size):
            pixels = torch.from_numpy(np.stack(images[place : place + batch_size])).to(device)
            parts.append(normalize(embed_with_flip(network, pixels).float()).cpu())
    return torch.cat(parts).numpy()


def _embed_set(
    network: EmbeddingNetwork,
    images: ImageSet,
    dist_ctx: DistContext,
    batch_size: int,
    stop: Callable[[], int],
    progress: Progress,
) -> Tensor:
    """Return float32 embeddings `[n, D]` of all images, not normalized, on every rank.

    Images are processed in fixed blocks of `batch_size`, the last one padded, distributed over the ranks in
    turn. The result of a block does not depend on the number of ranks. The next block is decoded while one is
    computed.

    Raises:
        EvaluationStoppedError: If a rank has a stop signal.
    """
    blocks = -(-len(images) // batch_size)
    turns = -(-blocks // dist_ctx.world_size)
    parts = []
    # Decoding releases the interpreter lock.
    with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:

        def begun(turn: int) -> list[Future[ImageArray]]:
            first = (turn * dist_ctx.world_size + dist_ctx.rank) * batch_size
            places = range(first, min(first + batch_size, len(images)))
            return [pool.submit(images.pixels, place, network.input_size) for place in places]

        ahead = begun(0)
        for turn in progress(images.name, range(turns)):
            coming, ahead = ahead, begun(turn + 1)
            with comm.raise_on_all_ranks(dist_ctx):
                block = _stack_images(
                    coming, batch_size, network.input_size, pinned=dist_ctx.device.type == "cuda"
                )
            parts.append(embed_with_flip(network, block.to(dist_ctx.device, non_blocking=True)))
            if asked := max(comm.all_gather_object(stop(), dist_ctx.host_group)):
                raise EvaluationStoppedError(asked)
    everyone = comm.all_gather_rows(torch.cat(parts).float(), dist_ctx.group)
    in_turn = everyone.view(dist_ctx.world_size, turns, batch_size, -1).transpose(0, 1)
    return in_turn.reshape(dist_ctx.world_size * turns * batch_size, -1)[: len(images)]


def _stack_images(
    futures: Sequence[Future[ImageArray]], batch_size: int, size: int, *, pinned: bool
) -> Tensor:
    """Return uint8 `[batch_size, H, H, 3]`: the decoded images, padded with black ones."""
    block = torch.zeros(batch_size, size, size, 3, dtype=torch.uint8, pin_memory=pinned)
    for row, pixels in enumerate(futures):
        block[row] = torch.from_numpy(pixels.result())
    return block
