"""The batches that a rank gets, ready on the device, with the labels of all ranks.

Legend: B images in the global batch, b = B / W of them on this rank, H x H pixels.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from partialfc.config import IGNORE, AugmentConfig, DataConfig
from partialfc.data import decoder_warnings
from partialfc.data.augment import augment, augmentation_draws, flipped
from partialfc.data.dataset import RecordDataset
from partialfc.data.images import Pixels
from partialfc.data.index import Integers
from partialfc.data.sampler import Order, Place, RankBatches, Request
from partialfc.data.stored_embeddings import PackEmbeddings
from partialfc.errors import InputError
from partialfc.runtime import comm, counter_rng, timing
from partialfc.runtime.comm import Ranks
from partialfc.runtime.exit_codes import one_line
from partialfc.runtime.process import signals

_UNREAD = -2  # stands for the labels of a rank that could not read its images
_PREFETCHED = 2  # parts that a worker makes ahead
# Parts of a worker that are alive at once: those it makes ahead, the one that is handed over, and one to be safe.
_RING = _PREFETCHED + 2
_REPLACEMENTS = 100  # that are tried; a pack with so many in a row is not worth training on


class Notices(NamedTuple):
    """What ranks tell each other with the labels of a step, one or two steps ahead of it: of each, the largest number that
    any rank has told.
    """

    signal: int = 0  # that asks the run to end
    save: int = 0  # 1: a checkpoint is due
    diverged: int = 0  # 1: the loss is lost


_SLOTS = 4  # records that a rank can name with a step; others are named with the next ones
# Numbers before the labels: the notices, how many images are replaced, and records that are damaged: 2 i, image i that
# cannot be read; 2 i + 1, one of which the decoder warned; -1, none.
_HEADER = len(Notices._fields) + 1 + _SLOTS


@dataclass(frozen=True)
class Batch:
    """One step's data."""

    images: Tensor  # [b, H, H, 3] uint8, of this rank, on the device
    labels: Tensor  # [B] int64, of all ranks in rank order, on the host
    waited: float  # seconds that the reading held up the rank
    replaced: int  # images of the global batch that could not be read, and have others in their place
    notices: Notices
    teacher: Tensor | None = None  # [b, D] a teacher's embeddings of the images, on the device
    unreadable: tuple[int, ...] = ()  # keys of records that could not be read, each once in a run's process
    corrupt: tuple[int, ...] = ()  # those of which the decoder warned


@dataclass(frozen=True)
class _Unread:
    """Stands for what could not be read: a value, so that it comes out of a worker without its traceback."""

    message: str


class _Part(NamedTuple):
    """What a worker makes of a rank's part of a batch; tensors on the host."""

    images: Tensor  # [b, H, H, 3] uint8, not mirrored yet
    labels: Tensor  # [b]
    mirrored: Tensor  # [m] int64: the rows of `images` that are to be
    replaced: int  # how many images stand in for others
    teacher: Tensor | None = None  # [b, D]
    damaged: tuple[int, ...] = ()  # as in a message's header


class Loader:
    """Reads this rank's part of every global batch in worker processes.

    The labels of the next step are gathered over the host group while the current one computes; the device
    is never waited for. An image that one rank cannot read is an CollectiveInputError on all, or with `on_corrupt: skip`
    another image of the pack, the same on any rank and in every run.
    """

    def __init__(
        self,
        dataset: RecordDataset,
        order: Order,
        config: DataConfig,
        augmentation: AugmentConfig,
        ranks: Ranks,
        teacher: PackEmbeddings | None = None,
    ) -> None:
        self.dataset, self.teacher, skip = dataset, teacher, config.on_corrupt == "skip"
        self._samples = _Augmented(dataset, augmentation, order.seed, skip=skip, teacher=teacher)
        self._order, self._ranks, self._workers = order, ranks, config.num_workers
        self._copies = torch.cuda.Stream(ranks.device) if ranks.device.type == "cuda" else None
        self._named: set[int] = set()  # damaged records of all ranks, which all know
        self._to_name: dict[int, None] = {}  # those of this rank, in their order

    def batches(self, start: int, stop: int, notices: Callable[[], Notices] = Notices) -> Iterator[Batch]:
        """The batches of the steps from `start` to before `stop`, whatever the steps before.

        notices: called before the labels of a step are sent, for what this rank has to tell with them.
        """
        with signals.held_back():
            reading = iter(self._reader(range(start, stop)))
        ahead = None
        for _ in range(start, stop):
            began = time.perf_counter()
            try:
                part = next(reading)
            except (ConnectionError, EOFError) as error:  # else it is torch that says so
                raise RuntimeError("a data worker ended while it handed over its images") from error
            part = _own(part)
            waited = time.perf_counter() - began
            gathering = comm.start_gather(self._message(part, notices()), self._ranks.host)
            if ahead is not None:
                yield self._ready(*ahead)
            ahead = part, gathering, waited
        if ahead is not None:
            yield self._ready(*ahead)

    def _reader(self, steps: range) -> DataLoader[Any]:
        return DataLoader(
            self._samples,
            sampler=RankBatches(self._order, self._ranks.rank, self._ranks.size, steps),
            batch_size=None,  # what the sampler gives is a batch
            collate_fn=_as_it_is,
            num_workers=self._workers,
            prefetch_factor=_PREFETCHED if self._workers else None,
            multiprocessing_context="spawn" if self._workers else None,  # threads do not survive a fork
            worker_init_fn=_prepare_worker,
            pin_memory=self._copies is not None,
        )

    def _message(self, part: _Part | _Unread, notices: Notices) -> Tensor:
        """What all ranks are to know of this one: notices, how many images stand in for others, and the labels [b]."""
        if isinstance(part, _Unread):
            return torch.full((_HEADER + self._order.batch // self._ranks.size,), _UNREAD)
        self._to_name |= dict.fromkeys(it for it in part.damaged if it not in self._named)
        named = list(self._to_name)[:_SLOTS]
        for it in named:
            del self._to_name[it]
        slots = named + [-1] * (_SLOTS - len(named))
        return torch.cat([torch.tensor([*notices, part.replaced, *slots]), part.labels])

    def _ready(self, part: _Part | _Unread, gathering: tuple[Tensor, comm.Work], waited: float) -> Batch:
        messages, gathered = gathering
        with timing.section(comm.SECTION):
            gathered.wait()
        if (messages == _UNREAD).any():
            comm.raise_first(part.message if isinstance(part, _Unread) else None, self._ranks)
        assert not isinstance(part, _Unread)
        messages = messages.view(self._ranks.size, -1)
        header, labels = messages[:, :_HEADER], messages[:, _HEADER:].reshape(-1)
        fields = len(Notices._fields)
        notices = Notices(*header[:, :fields].amax(0).tolist())
        new = sorted(set(header[:, fields + 1 :].flatten().tolist()) - self._named - {-1})
        self._named.update(new)
        unreadable, corrupt = (
            tuple(self.dataset.key(it >> 1) for it in new if it & 1 == kind) for kind in (0, 1)
        )
        images, teacher = self._on_device(part)
        replaced = int(header[:, fields].sum())
        return Batch(images, labels, waited, replaced, notices, teacher, unreadable, corrupt)

    def _on_device(self, part: _Part) -> tuple[Tensor, Tensor | None]:
        """The part's images, mirrored where they are to be, and the teacher's embeddings of them."""
        tensors = [part.images, part.mirrored] + ([] if part.teacher is None else [part.teacher])
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                tensors = [it.to(self._ranks.device, non_blocking=True) for it in tensors]
            compute = torch.cuda.current_stream(self._ranks.device)
            compute.wait_stream(self._copies)
            for tensor in tensors:
                tensor.record_stream(compute)
        images, mirrored, *teacher = tensors
        images[mirrored] = images[mirrored].flip(2)  # rows by number: their count is known without the device
        return images, teacher[0] if teacher else None


class _Augmented(Dataset[_Part | _Unread]):
    """Samples as they are at their places in the run, a rank's part of a batch at a time."""

    def __init__(
        self,
        dataset: RecordDataset,
        augmentation: AugmentConfig,
        seed: int,
        *,
        skip: bool,
        teacher: PackEmbeddings | None = None,
    ) -> None:
        self._dataset, self._augment, self._seed, self._teacher = dataset, augmentation, seed, teacher
        self._tries = 1 + (_REPLACEMENTS if skip else 0)
        self._ring: deque[Tensor] = deque(maxlen=_RING)

    def __getitem__(self, request: Request) -> _Part | _Unread:
        """The places are of one epoch. Everything that does not depend on pixels is done for all of them at once."""
        places = request.places
        samples = np.array([place.sample for place in places])
        self._dataset.prefetch_hint(samples if request.announced is None else request.announced)
        mirrored = flipped(samples, self._augment, seed=self._seed, epoch=places[0].epoch)
        draws = (
            augmentation_draws(samples, seed=self._seed, epoch=places[0].epoch)
            if self._augment.strong
            else None
        )
        images, target, labels, shown = None, None, [], samples.copy()
        damaged: list[int] = []
        for row, place in enumerate(places):
            read = self._read(place.sample, damaged)
            if isinstance(read, _Unread):
                return read
            pixels, label, shown[row] = read
            if draws is not None:
                pixels = augment(pixels, draws[row], self._augment)
            if images is None or target is None:
                images = self._buffer((len(places), *pixels.shape))
                target = images.numpy()
            target[row] = pixels
            labels.append(IGNORE if place.padding else label)
        assert images is not None
        return _Part(
            images,
            torch.tensor(labels),
            torch.from_numpy(np.flatnonzero(mirrored)),
            replaced=int((shown != samples).sum()),
            teacher=None if self._teacher is None else self._taught(places, shown),
            damaged=tuple(damaged),
        )

    def _taught(self, places: list[Place], shown: Integers) -> Tensor:
        """The teacher's embeddings [b, D] of samples, 0 for padding."""
        assert self._teacher is not None
        kept = np.array([not place.padding for place in places])
        return torch.from_numpy(self._teacher[shown] * kept[:, None])

    def _buffer(self, shape: tuple[int, ...]) -> Tensor:
        """uint8, with undefined content, in memory that the rank's process maps, too; taken again after _RING parts.
        Fresh memory would cost a third of what decoding into it does.
        """
        if len(self._ring) < _RING or self._ring[0].shape != shape:
            self._ring.append(torch.empty(shape, dtype=torch.uint8).share_memory_())
        else:
            self._ring.rotate(-1)  # the one that was taken longest ago
        return self._ring[-1]

    def _read(self, sample: int, damaged: list[int]) -> tuple[Pixels, int, int] | _Unread:
        """The image and label of a sample, or of what stands in for it; and which that is. `damaged` gets what was."""
        chosen, first_error = sample, ""
        for attempt in range(self._tries):
            try:
                pixels, label = self._dataset[chosen]
                if decoder_warnings.warned():
                    damaged.append(2 * chosen + 1)
                return pixels, label, chosen
            except (InputError, OSError) as error:
                decoder_warnings.warned()  # of what is counted as unreadable
                damaged.append(2 * chosen)
                first_error = first_error or one_line(error)
            key = counter_rng.key(self._seed, "replacement", sample)
            chosen = int(counter_rng.below(key, np.array([attempt]), np.array([len(self._dataset)]))[0])
        return _Unread(first_error)


def _own(part: _Part | _Unread) -> _Part | _Unread:
    """A copy, as a worker writes over what it handed over before; pinned memory is a copy already."""
    if isinstance(part, _Unread) or part.images.is_pinned() or not part.images.is_shared():
        return part
    return part._replace(images=part.images.clone())


def _as_it_is(part: Any) -> Any:
    return part


def _prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism; torch sets its own threads to 1
    sys.excepthook = _unless_the_rank_is_gone
    decoder_warnings.capture()


def _unless_the_rank_is_gone(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not issubclass(
        kind, (ConnectionError, EOFError)
    ):  # as a killed rank leaves the thread that hands over images
        sys.__excepthook__(kind, error, trace)
