"""Batches of a rank, ready on the device, with the labels of all ranks.

Shapes:
    B: images of the global batch
    b: B / W, images of this rank
    H: image size
    D: embedding size
"""

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from partialfc.config import IGNORE_LABEL, AugmentConfig, DataConfig
from partialfc.data import decoder_warnings, worker_processes
from partialfc.data.augment import augment, augmentation_params, flip_mask
from partialfc.data.dataset import RecordDataset
from partialfc.data.images import ImageArray
from partialfc.data.index import IntArray
from partialfc.data.sampler import RankBatchSampler, ReadRequest, SampleOrder, SampleRef
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.runtime import comm, counter_rng, timing
from partialfc.runtime.comm import DistContext
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.memory_limits import describe_memory
from partialfc.runtime.process import signals

_READ_FAILED = -2  # replaces the labels of a rank that could not read its images
_PREFETCH_FACTOR = 2  # batches that a worker prepares ahead
# Batches of a worker in use at the same time: prepared ones, the one handed over, and one spare.
_RING_SIZE = _PREFETCH_FACTOR + 2
_MAX_REPLACEMENTS = (
    100  # attempts; a pack with that many consecutive unreadable images is not worth training on
)


class StepFlags(NamedTuple):
    """Flags that ranks exchange with the labels of a step, one or two steps ahead.

    Each is the maximum over all ranks.
    """

    signal: int = 0  # stop signal; 0 if none
    save_due: int = 0  # 1: a checkpoint is due
    diverged: int = 0  # 1: the run has diverged


_SLOTS = 4  # records that a rank can report per step; others are reported later
# Numbers before the labels: flags, number of replaced images, and damaged records: 2 i, image i is
# unreadable; 2 i + 1, image i caused a decoder warning; -1, none.
_HEADER_SIZE = len(StepFlags._fields) + 1 + _SLOTS


@dataclass(frozen=True)
class Batch:
    """Data of one step."""

    images: Tensor  # `[b, H, H, 3]` uint8, of this rank, on the device
    labels: Tensor  # `[B]` int64, of all ranks in rank order, on the host
    data_wait_seconds: float  # time for which reading delayed the rank
    num_replaced: int  # unreadable images of the global batch that were replaced
    flags: StepFlags
    teacher_embeddings: Tensor | None = None  # `[b, D]`, on the device
    unreadable: tuple[int, ...] = ()  # keys of unreadable records, each reported once per process
    corrupt: tuple[int, ...] = ()  # keys of records with decoder warnings


@dataclass(frozen=True)
class _ReadFailure:
    """Error as a value, so that it leaves a worker without its traceback."""

    message: str


class _WorkerBatch(NamedTuple):
    """Part of a batch of one rank, prepared by a worker; host tensors."""

    images: Tensor  # `[b, H, H, 3]` uint8, not flipped yet
    labels: Tensor  # `[b]`
    flip_indices: Tensor  # `[m]` int64: rows of `images` to flip
    num_replaced: int  # images that replace unreadable ones
    teacher_embeddings: Tensor | None = None  # `[b, D]`
    damaged: tuple[int, ...] = ()  # encoded as in a message's header


class BatchLoader:
    """Loader of this rank's part of every global batch, with worker processes.

    The labels of the next step are gathered over the host group while the current one computes, without
    waiting for the device. An image that one rank cannot read raises a CollectiveInputError on all ranks.
    With `on_corrupt: skip` another image of the pack replaces it, the same for any number of ranks and in
    every run.
    """

    def __init__(
        self,
        dataset: RecordDataset,
        order: SampleOrder,
        config: DataConfig,
        augmentation: AugmentConfig,
        dist_ctx: DistContext,
        teacher: StoredEmbeddings | None = None,
    ) -> None:
        self.dataset, self.teacher, skip = dataset, teacher, config.on_corrupt == "skip"
        self._samples = _AugmentedSamples(dataset, augmentation, order.seed, skip=skip, teacher=teacher)
        self._order, self._dist_ctx, self._workers = order, dist_ctx, config.num_workers
        self._copy_stream = torch.cuda.Stream(dist_ctx.device) if dist_ctx.device.type == "cuda" else None
        if config.num_workers:
            sample_bytes = dataset.image_bytes + (0 if teacher is None else 4 * teacher.embedding_size)
            worker_processes.check_shared_memory(
                config.num_workers,
                buffers=_RING_SIZE,
                batch_size=order.global_batch_size // dist_ctx.world_size,
                sample_bytes=sample_bytes,
            )
        self._named: set[int] = set()  # damaged records of all ranks that were reported
        self._to_name: dict[int, None] = {}  # damaged records of this rank to report, in order

    def batches(
        self, start: int, stop: int, get_flags: Callable[[], StepFlags] = StepFlags
    ) -> Generator[Batch, None, None]:
        """Yield the batches of the steps from `start` to before `stop`, independent of previous steps.

        `get_flags` is called before the labels of a step are sent; it returns the flags of this rank.

        Raises:
            WorkerKilledError: If a data worker was killed.
            RuntimeError: If a data worker failed otherwise.
            CollectiveInputError: If an image cannot be read.
        """
        with signals.block_stop_signals():
            reading = iter(self._data_loader(range(start, stop)))
        worker_processes.restore_sigchld()
        ahead = None
        for _ in range(start, stop):
            began = time.perf_counter()
            try:
                part = next(reading)
            except (RuntimeError, ConnectionError, EOFError) as error:
                worker_processes.raise_if_killed(getattr(reading, "_workers", []), self._dist_ctx.rank)
                raise RuntimeError("a data worker failed") from error
            part = _copy_if_shared(part)
            waited = time.perf_counter() - began
            gathering = comm.all_gather_async(
                self._pack_message(part, get_flags()), self._dist_ctx.host_group
            )
            if ahead is not None:
                yield self._finish_batch(*ahead)
            ahead = part, gathering, waited
        if ahead is not None:
            yield self._finish_batch(*ahead)

    def _data_loader(self, steps: range) -> DataLoader[Any]:
        return DataLoader(
            self._samples,
            sampler=RankBatchSampler(self._order, self._dist_ctx.rank, self._dist_ctx.world_size, steps),
            batch_size=None,  # the sampler yields batches
            collate_fn=_identity,
            num_workers=self._workers,
            prefetch_factor=_PREFETCH_FACTOR if self._workers else None,
            multiprocessing_context="spawn" if self._workers else None,  # threads do not survive a fork
            worker_init_fn=worker_processes.initialize,
            pin_memory=self._copy_stream is not None,
        )

    def _pack_message(self, worker_batch: _WorkerBatch | _ReadFailure, flags: StepFlags) -> Tensor:
        """Return the message of this rank to all ranks: flags, number of replaced images, and labels `[b]`."""
        if isinstance(worker_batch, _ReadFailure):
            return torch.full(
                (_HEADER_SIZE + self._order.global_batch_size // self._dist_ctx.world_size,), _READ_FAILED
            )
        self._to_name |= dict.fromkeys(it for it in worker_batch.damaged if it not in self._named)
        named = list(self._to_name)[:_SLOTS]
        for it in named:
            del self._to_name[it]
        slots = named + [-1] * (_SLOTS - len(named))
        return torch.cat([torch.tensor([*flags, worker_batch.num_replaced, *slots]), worker_batch.labels])

    def _finish_batch(
        self,
        worker_batch: _WorkerBatch | _ReadFailure,
        pending_gather: tuple[Tensor, comm.Work],
        data_wait_seconds: float,
    ) -> Batch:
        messages, gathered = pending_gather
        with timing.section(comm.COMM_SECTION):
            gathered.wait()
        if (messages == _READ_FAILED).any():
            comm.raise_first_error(
                worker_batch.message if isinstance(worker_batch, _ReadFailure) else None, self._dist_ctx
            )
        assert not isinstance(worker_batch, _ReadFailure)
        messages = messages.view(self._dist_ctx.world_size, -1)
        header, labels = messages[:, :_HEADER_SIZE], messages[:, _HEADER_SIZE:].reshape(-1)
        fields = len(StepFlags._fields)
        notices = StepFlags(*header[:, :fields].amax(0).tolist())
        new = sorted(set(header[:, fields + 1 :].flatten().tolist()) - self._named - {-1})
        self._named.update(new)
        unreadable, corrupt = (
            tuple(self.dataset.key(it >> 1) for it in new if it & 1 == kind) for kind in (0, 1)
        )
        images, teacher = self._to_device(worker_batch)
        replaced = int(header[:, fields].sum())
        return Batch(images, labels, data_wait_seconds, replaced, notices, teacher, unreadable, corrupt)

    def _to_device(self, worker_batch: _WorkerBatch) -> tuple[Tensor, Tensor | None]:
        """Return the images on the device, flipped where due, and their teacher embeddings."""
        tensors = [worker_batch.images, worker_batch.flip_indices] + (
            [] if worker_batch.teacher_embeddings is None else [worker_batch.teacher_embeddings]
        )
        if self._copy_stream is not None:
            with torch.cuda.stream(self._copy_stream):
                tensors = [it.to(self._dist_ctx.device, non_blocking=True) for it in tensors]
            compute = torch.cuda.current_stream(self._dist_ctx.device)
            compute.wait_stream(self._copy_stream)
            for tensor in tensors:
                tensor.record_stream(compute)
        images, mirrored, *teacher = tensors
        images[mirrored] = images[mirrored].flip(2)  # indexing by rows needs no host synchronization
        return images, teacher[0] if teacher else None


class _AugmentedSamples(Dataset[_WorkerBatch | _ReadFailure]):
    """Dataset of augmented samples, one part of a batch at a time."""

    def __init__(
        self,
        dataset: RecordDataset,
        augmentation: AugmentConfig,
        seed: int,
        *,
        skip: bool,
        teacher: StoredEmbeddings | None = None,
    ) -> None:
        self._dataset, self._augment, self._seed, self._teacher = dataset, augmentation, seed, teacher
        self._tries = 1 + (_MAX_REPLACEMENTS if skip else 0)
        self._ring: deque[Tensor] = deque(maxlen=_RING_SIZE)

    def __getitem__(self, request: ReadRequest) -> _WorkerBatch | _ReadFailure:
        """Read, decode and augment the samples of one request, all of one epoch.

        Everything that does not depend on pixels is computed for all of them together.

        Returns:
            Part of a batch, or the failure to read it.
        """
        places = request.samples
        samples = np.array([place.sample_index for place in places])
        self._dataset.prefetch_hint(samples if request.prefetch_indices is None else request.prefetch_indices)
        mirrored = flip_mask(samples, self._augment, seed=self._seed, epoch=places[0].epoch)
        draws = (
            augmentation_params(samples, seed=self._seed, epoch=places[0].epoch)
            if self._augment.has_strong_augmentations
            else None
        )
        images, target, labels, shown = None, None, [], samples.copy()
        damaged: list[int] = []
        for row, place in enumerate(places):
            read = self._read_or_replace(place.sample_index, damaged)
            if isinstance(read, _ReadFailure):
                return read
            pixels, label, shown[row] = read
            if draws is not None:
                pixels = augment(pixels, draws[row], self._augment)
            if images is None or target is None:
                try:
                    images = self._next_buffer((len(places), *pixels.shape))
                except RuntimeError as error:  # another process has filled it
                    return _ReadFailure(f"no memory for images ({describe_memory()}): {error}")
                target = images.numpy()
            target[row] = pixels
            labels.append(IGNORE_LABEL if place.is_padding else label)
        assert images is not None
        return _WorkerBatch(
            images,
            torch.tensor(labels),
            torch.from_numpy(np.flatnonzero(mirrored)),
            num_replaced=int((shown != samples).sum()),
            teacher_embeddings=None if self._teacher is None else self._teacher_embeddings(places, shown),
            damaged=tuple(damaged),
        )

    def _teacher_embeddings(self, sample_refs: list[SampleRef], sample_indices: IntArray) -> Tensor:
        """Return the teacher embeddings `[b, D]` of samples; zero for padding."""
        assert self._teacher is not None
        kept = np.array([not place.is_padding for place in sample_refs])
        return torch.from_numpy(self._teacher[sample_indices] * kept[:, None])

    def _next_buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialized uint8 buffer; in a worker in shared memory, reused after _RING_SIZE batches.

        Fresh shared memory would cost a third of the time for decoding into it.
        """
        if get_worker_info() is None:
            return torch.empty(shape, dtype=torch.uint8)
        if len(self._ring) < _RING_SIZE or self._ring[0].shape != shape:
            self._ring.append(torch.empty(shape, dtype=torch.uint8).share_memory_())
        else:
            self._ring.rotate(-1)  # the buffer that was used longest ago
        return self._ring[-1]

    def _read_or_replace(self, sample: int, damaged: list[int]) -> tuple[ImageArray, int, int] | _ReadFailure:
        """Return image and label of a sample or its replacement, and its index.

        Damaged samples are added to `damaged`.
        """
        chosen, first_error = sample, ""
        for attempt in range(self._tries):
            try:
                pixels, label = self._dataset[chosen]
                if decoder_warnings.warned():
                    damaged.append(2 * chosen + 1)
                return pixels, label, chosen
            except (InputError, OSError) as error:
                decoder_warnings.warned()  # already counted as unreadable
                damaged.append(2 * chosen)
                first_error = first_error or format_error(error)
            key = counter_rng.derive_key(self._seed, "replacement", sample)
            chosen = int(
                counter_rng.random_integers(key, np.array([attempt]), np.array([len(self._dataset)]))[0]
            )
        return _ReadFailure(first_error)


def _copy_if_shared(part: _WorkerBatch | _ReadFailure) -> _WorkerBatch | _ReadFailure:
    """Return a copy of shared memory, which its worker overwrites later; pinned memory is a copy already."""
    if isinstance(part, _ReadFailure) or part.images.is_pinned() or not part.images.is_shared():
        return part
    return part._replace(images=part.images.clone())


def _identity(part: Any) -> Any:
    return part
