"""What a run of a recipe needs of each rank, by arithmetic: nothing is built, no process group is started.

Legend: W ranks, B images in the global batch, b = B / W of them on a rank, C classes, n = ceil(C / W) of them on the
first rank, S of those active in a step, D embedding width.
"""

import functools
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from partialfc.backbones import Backbone, build_backbone
from partialfc.config import AnyBackbone, Config, CustomBackbone, TimmBackbone
from partialfc.head.centers import storage_dtypes
from partialfc.head.kernels.torch_centers import CENTERS
from partialfc.head.losses import build_loss
from partialfc.head.neighbors import REFRESH_INTERVAL, refresh_block_size, rows_per_chunk
from partialfc.head.optimizers import RowOptimizer, build_row_optimizer
from partialfc.head.sampling import num_sampled_classes
from partialfc.head.state import class_range
from partialfc.head.storage.catch_up import MAX_STEPS
from partialfc.head.workspace import classes_per_chunk
from partialfc.runtime.precision import autocast
from partialfc.training.backbone_optimizer import num_state_copies

BytesByPurpose = dict[str, int]  # by what they are for

_HALF, _FLOAT, _DOUBLE, _COUNT = 2, 4, 8, 4
# Live at once at the peak of a backward, beside what the forward saved: gradients of its largest activation.
_BACKWARD_PEAK_FACTOR = 4
_MIN_BATCHNORM_IMAGES = 2  # images that BatchNorm takes in training


@dataclass(frozen=True)
class PlannedRun:
    """A recipe's run on `world_size` ranks."""

    config: Config
    num_classes: int
    world_size: int
    device: str = "cuda"  # or cpu: chunks are of another size

    @property
    def classes_per_rank(self) -> int:
        """n."""
        return len(class_range(self.num_classes, 0, self.world_size))

    @property
    def active_classes_per_rank(self) -> int:
        """S, on average, where the sample rate is at its largest: the draw's share, and what of the batch's own classes was not
        drawn.
        """
        rate, batch = self.config.head.max_sample_rate, self.config.train.global_batch_size
        if rate == 1:
            return self.classes_per_rank
        drawn = num_sampled_classes(self.num_classes, rate) / self.world_size
        return min(
            self.classes_per_rank, round(drawn + (1 - rate) * min(batch, self.num_classes) / self.world_size)
        )

    @property
    def optimizer(self) -> RowOptimizer:
        """How rows step."""
        return build_row_optimizer(
            self.config.center_optimizer, moments=self.config.head.optim_state_dtype != "none"
        )

    @property
    def storage_dtypes(self) -> dict[str, torch.dtype]:
        """Types of the centres and of each of their moments."""
        head = self.config.head
        return storage_dtypes(head, self.optimizer.moments, torch.float32)

    @property
    def matmul_precision(self) -> str:
        """float32, tf32 or half, as a GPU multiplies."""
        chosen = self.config.head.matmul_precision
        return "tf32" if chosen == "auto" else chosen

    @property
    def keeps_logits(self) -> bool:
        """Whether their exponentials fit the budget."""
        wanted = (
            self.active_classes_per_rank
            * self.config.train.global_batch_size
            * (self._operand_bytes + self._subcenter_index_bytes)
        )
        return self.optimizer.by_gradient and wanted <= self.config.head.logits_budget << 20

    def head_memory(self) -> BytesByPurpose:
        """On the device of a rank."""
        width, batch, kept = (
            self.config.backbone.embedding_size,
            self.config.train.global_batch_size,
            self.storage_dtypes,
        )
        each = self.config.head.subcenters
        chunk = min(self.active_classes_per_rank, classes_per_chunk(width, batch, self.device, _FLOAT, each))
        row = sum(dtype.itemsize for dtype in kept.values()) * self._row_width
        on_device = self.config.head.memory == "device"
        parts: BytesByPurpose = {}
        if on_device:
            centers = self.classes_per_rank * self._row_width * kept[CENTERS].itemsize
            parts = {"class centres": centers, "their moments": self.classes_per_rank * row - centers}
        else:
            parts = {"rows of two steps": 2 * self.active_classes_per_rank * row}
        if self.optimizer.counts:
            parts["steps of each row"] = self.classes_per_rank * _COUNT
        if self._defers_updates:
            parts["what rows have missed"] = self.active_classes_per_rank * 4 * (_DOUBLE + _FLOAT)
            parts["learning rates of all steps"] = MAX_STEPS * _FLOAT
        parts["logits"] = (
            (self.active_classes_per_rank if self.keeps_logits else chunk)
            * batch
            * (self._operand_bytes + self._subcenter_index_bytes)
        )
        if (
            each > 1
        ):  # by centres, as the product gives them and as factors; and the largest, with their places
            parts["logits"] += chunk * batch * (each * (_FLOAT + self._operand_bytes) + _FLOAT + _DOUBLE)
        if self.matmul_precision == "half":
            parts["logits"] += chunk * batch * _FLOAT  # as the product gives them
        parts["a chunk's buffers"] = chunk * self._row_buffers(row, on_device)
        if self._samples_hard:
            parts["a block's neighbours"] = self._neighbor_search_memory()
        # gathered, at length s, their gradient from the classes, that times the loss's own, and two for the update
        parts["embeddings"] = (6 * batch + 3 * batch // self.world_size) * width * _FLOAT
        return parts

    def host_memory(self) -> BytesByPurpose:
        """In the host's memory, for each rank, beside the process itself."""
        row = sum(dtype.itemsize for dtype in self.storage_dtypes.values()) * self._row_width
        parts: BytesByPurpose = {}
        if self.config.head.memory == "host":
            parts["rows (pinned)"] = self.classes_per_rank * row
        if self._defers_updates:
            parts["steps of each row"] = self.classes_per_rank * _COUNT
        if self._samples_hard:
            parts["neighbours of all classes"] = self._neighbors_size
        return parts

    def snapshot_memory(self) -> BytesByPurpose:
        """In the host's memory, for each rank: the copy of what is written as a checkpoint. Rows that live there, or in
        files, are not copied; the backbone is dealt out to the ranks.
        """
        config = self.config
        parameters, _, _ = _trace_backbone(config.backbone, config.optim.precision, _MIN_BATCHNORM_IMAGES)
        size = (
            (1 + num_state_copies(config.optim) + bool(config.optim.ema_decay))
            * parameters
            // self.world_size
        )
        if config.head.memory == "device":
            size += (
                self.classes_per_rank
                * sum(dtype.itemsize for dtype in self.storage_dtypes.values())
                * self._row_width
            )
        return {"a checkpoint being written": size + self._samples_hard * self._neighbors_size}

    def backbone_memory(self) -> BytesByPurpose:
        """On the device of a rank."""
        config = self.config
        images = config.train.micro_batch_size or config.train.global_batch_size // self.world_size
        parameters, saved, largest = _trace_backbone(config.backbone, config.optim.precision, images)
        return {
            "backbone: parameters": parameters,
            "backbone: gradients": parameters,
            "backbone: moments": num_state_copies(config.optim) * parameters,
            **(
                {"backbone: moving average, and its change": 2 * parameters} if config.optim.ema_decay else {}
            ),
            "backbone: activations, estimated": saved + _BACKWARD_PEAK_FACTOR * largest,
        }

    def head_traffic(self) -> BytesByPurpose:
        """By a rank in a step, in rings."""
        batch, width = self.config.train.global_batch_size, self.config.backbone.embedding_size
        others = (self.world_size - 1) / self.world_size
        loss = build_loss(self.config.loss, steps_per_epoch=1)
        teacher = 0 if self.optimizer.by_gradient else round(others * batch * width * _FLOAT)
        return {
            "embeddings, gathered": round(
                others * batch * (width * self._operand_bytes + loss.needs_norms * _FLOAT)
            ),
            "their gradients, scattered": round(others * batch * width * _FLOAT),
            "softmax": round(2 * others * batch * (2 * _DOUBLE + _FLOAT * loss.needs_cosines)),
            **({"a teacher's embeddings, gathered": teacher} if teacher else {}),
            **({"a block and its neighbours": self._neighbor_search_traffic()} if self._samples_hard else {}),
        }

    def backbone_traffic(self) -> BytesByPurpose:
        """By a rank in a step, in rings."""
        parameters, _, _ = _trace_backbone(
            self.config.backbone, self.config.optim.precision, _MIN_BATCHNORM_IMAGES
        )
        share = 0.5 if self.config.optim.reduce_dtype == "bfloat16" else 1.0
        return {
            "backbone's gradients": round(2 * (self.world_size - 1) / self.world_size * parameters * share)
        }

    def head_flops(self) -> int:
        """Operations of a step's products in the head: logits, gradients of embeddings and rows; logits twice if not kept.
        Rows that follow a teacher have no gradient.
        """
        products = (3 if self.keeps_logits else 4) if self.optimizer.by_gradient else 2
        search = (
            self._samples_hard * 2 * self._block * self.classes_per_rank * self._row_width // REFRESH_INTERVAL
        )
        return (
            products
            * 2
            * self.config.train.global_batch_size
            * self.active_classes_per_rank
            * self._row_width
            + search
        )

    def head_memory_traffic(self) -> int:
        """Bytes between the device and its memory in a step of the head: rows, and passes over the logits."""
        width = self._row_width
        centers = self.storage_dtypes[CENTERS].itemsize
        moments = sum(dtype.itemsize for dtype in self.storage_dtypes.values()) - centers
        updated = self.optimizer.by_gradient
        rows = self.active_classes_per_rank * width * ((3 if updated else 1) * centers + 2 * moments)
        # logits written and read; exponentials written, and read for the embeddings and for the rows
        logits = 2 * _FLOAT + (3 if updated else 2) * self._operand_bytes
        search = self._samples_hard * self.classes_per_rank * width * centers // REFRESH_INTERVAL
        return rows + logits * self.active_classes_per_rank * self.config.train.global_batch_size + search

    def _neighbor_search_memory(self) -> int:
        """Of a block's centres, rows compared with them, and the best so far: cosines, and classes."""
        width, rows = self._row_width, min(self.classes_per_rank, rows_per_chunk(self._block))
        compared = rows * (width * (_FLOAT + self._operand_bytes) + self._block * _FLOAT)
        best = self._block * self.config.head.hard_neighbors * (_FLOAT + _DOUBLE) * (2 + 2 * self.world_size)
        return self._block * width * (_FLOAT + self._operand_bytes) + compared + best

    def _neighbor_search_traffic(self) -> int:
        """On average over the steps."""
        others = self.world_size - 1
        directions = 2 * others / self.world_size * self._block * self._row_width * _FLOAT
        lists = others * self._block * self.config.head.hard_neighbors * (_FLOAT + _DOUBLE)
        return round((directions + lists) / REFRESH_INTERVAL)

    @property
    def _samples_hard(self) -> bool:
        return self.config.head.sampling == "hard"

    @property
    def _block(self) -> int:
        return refresh_block_size(self.num_classes, self.config.head)

    @property
    def _neighbors_size(self) -> int:
        """Bytes of the lists, and of those on their way."""
        return (self.num_classes + self._block) * self.config.head.hard_neighbors * _COUNT

    @property
    def _operand_bytes(self) -> int:
        """Bytes of a factor of a product, and so of an exponential that is kept."""
        return _HALF if self.matmul_precision == "half" else _FLOAT

    @property
    def _subcenter_index_bytes(self) -> int:
        """Bytes that are kept of a logit beside it: which sub-centre it is of."""
        return int(self.config.head.subcenters > 1)

    @property
    def _row_width(self) -> int:
        """Components of a class's centres."""
        extra = build_loss(self.config.loss, steps_per_epoch=1).extra_columns
        return (self.config.backbone.embedding_size + extra) * self.config.head.subcenters

    @property
    def _defers_updates(self) -> bool:
        return self.config.head.unsampled == "decay" and self.config.head.uses_sampling

    def _row_buffers(self, row: int, gathered: bool) -> int:
        """Bytes for each row of a chunk: at length 1, its gradient, what was gathered, what was converted, noise, copies."""
        width, kept = self._row_width, self.storage_dtypes
        converted = sum(dtype != torch.float32 for dtype in kept.values())
        buffers = 2 + converted + (2 if converted else 0)
        if self._defers_updates:
            buffers += len(kept)
        buffers += self.optimizer.temporaries + (
            self.matmul_precision == "half"
        )  # two factors of half the size
        return buffers * width * _FLOAT + (row if gathered else 0)


def _trace_backbone(config: AnyBackbone, precision: str, images: int) -> tuple[int, int, int]:
    """Bytes of the backbone's parameters, of what its forward saves for the backward, and of the largest of that."""
    described = msgspec.json.encode(config)  # settings may hold a mapping, by which nothing is cached
    return _traced_as(described, precision, images)


@functools.cache
def _traced_as(described: bytes, precision: str, images: int) -> tuple[int, int, int]:
    settings: AnyBackbone = msgspec.json.decode(described, type=AnyBackbone)
    if isinstance(settings, CustomBackbone | TimmBackbone):  # whose code may read values: run, for few images
        few = min(images, _MIN_BATCHNORM_IMAGES)
        with torch.random.fork_rng(devices=[]):
            parameters, saved, largest = _saved(build_backbone(settings), precision, few)
        return parameters, saved * images // few, largest * images // few
    with FakeTensorMode():  # shapes and types without memory
        return _saved(build_backbone(settings), precision, images)


def _saved(backbone: Backbone, precision: str, images: int) -> tuple[int, int, int]:
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    own = [*backbone.parameters(), *backbone.buffers()]
    size = backbone.input_size
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        autocast(precision, torch.device("cpu")),
    ):
        backbone(torch.zeros(images, 3, size, size))
    for tensor in own:
        saved.pop(tensor.untyped_storage()._cdata, None)
    parameters = sum(it.nbytes for it in backbone.parameters())
    sizes = [storage.nbytes() for storage in saved.values()]
    return parameters, sum(sizes), max(sizes, default=0)
