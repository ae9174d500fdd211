"""Resources of a run by arithmetic: no tensors are allocated, no process group is started.

Shapes:
    W: ranks
    B: images of the global batch
    b: B / W, images of a rank
    C: classes
    n: ceil(C / W), classes of rank 0
    S: active classes of a rank in a step
    D: embedding size
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

BytesByPurpose = dict[str, int]  # bytes by purpose

_HALF, _FLOAT, _DOUBLE, _COUNT = 2, 4, 8, 4
# Gradients that exist at the peak of a backward, relative to the largest activation.
_BACKWARD_PEAK_FACTOR = 4
_MIN_BATCHNORM_IMAGES = 2  # minimum batch of BatchNorm in training


@dataclass(frozen=True)
class PlannedRun:
    """Run of a recipe on `world_size` ranks."""

    config: Config
    num_classes: int
    world_size: int
    device: str = "cuda"  # or "cpu", which has another chunk size

    @property
    def classes_per_rank(self) -> int:
        """Classes of rank 0, n."""
        return len(class_range(self.num_classes, 0, self.world_size))

    @property
    def active_classes_per_rank(self) -> int:
        """Expected number of active classes at the largest sample rate: sampled plus unsampled positive classes."""
        rate, batch = self.config.head.max_sample_rate, self.config.train.global_batch_size
        if rate == 1:
            return self.classes_per_rank
        drawn = num_sampled_classes(self.num_classes, rate) / self.world_size
        return min(
            self.classes_per_rank, round(drawn + (1 - rate) * min(batch, self.num_classes) / self.world_size)
        )

    @property
    def optimizer(self) -> RowOptimizer:
        """Optimizer of the rows."""
        return build_row_optimizer(
            self.config.center_optimizer, moments=self.config.head.optim_state_dtype != "none"
        )

    @property
    def storage_dtypes(self) -> dict[str, torch.dtype]:
        """Storage dtypes of the centers and of their optimizer state."""
        head = self.config.head
        return storage_dtypes(head, self.optimizer.moments, torch.float32)

    @property
    def matmul_precision(self) -> str:
        """Precision of matrix products on a GPU: float32, tf32 or half."""
        chosen = self.config.head.matmul_precision
        return "tf32" if chosen == "auto" else chosen

    @property
    def keeps_logits(self) -> bool:
        """True if the exponentials of the logits fit the budget."""
        expected = (
            self.active_classes_per_rank
            * self.config.train.global_batch_size
            * (self._operand_bytes + self._subcenter_index_bytes)
        )
        return self.optimizer.by_gradient and expected <= self.config.head.logits_budget << 20

    def head_memory(self) -> BytesByPurpose:
        """Return the head's device memory per rank."""
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
            parts = {"class centers": centers, "their moments": self.classes_per_rank * row - centers}
        else:
            parts = {"rows of two steps": 2 * self.active_classes_per_rank * row}
        if self.optimizer.counts:
            parts["steps of each row"] = self.classes_per_rank * _COUNT
        if self._defers_updates:
            parts["skipped updates of rows"] = self.active_classes_per_rank * 4 * (_DOUBLE + _FLOAT)
            parts["learning rates of all steps"] = MAX_STEPS * _FLOAT
        parts["logits"] = (
            (self.active_classes_per_rank if self.keeps_logits else chunk)
            * batch
            * (self._operand_bytes + self._subcenter_index_bytes)
        )
        if each > 1:  # per center, as computed and as matmul operands; and the maxima, with their indices
            parts["logits"] += chunk * batch * (each * (_FLOAT + self._operand_bytes) + _FLOAT + _DOUBLE)
        if self.matmul_precision == "half":
            parts["logits"] += chunk * batch * _FLOAT  # as computed
        parts["a chunk's buffers"] = chunk * self._row_buffers(row, on_device)
        if self._samples_hard:
            parts["neighbors of a block"] = self._neighbor_search_memory()
        # gathered, L2-normalized, their gradient from the classes, the product with the loss's own, and two
        # for the update
        parts["embeddings"] = (6 * batch + 3 * batch // self.world_size) * width * _FLOAT
        return parts

    def host_memory(self) -> BytesByPurpose:
        """Return the host memory per rank, in addition to the process itself."""
        row = sum(dtype.itemsize for dtype in self.storage_dtypes.values()) * self._row_width
        parts: BytesByPurpose = {}
        if self.config.head.memory == "host":
            parts["rows (pinned)"] = self.classes_per_rank * row
        if self._defers_updates:
            parts["steps of each row"] = self.classes_per_rank * _COUNT
        if self._samples_hard:
            parts["neighbors of all classes"] = self._neighbors_size
        return parts

    def snapshot_memory(self) -> BytesByPurpose:
        """Return the host memory per rank for the copy of a checkpoint.

        Rows in host memory are not copied. The backbone is distributed over the ranks.
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
        return {"copy of a checkpoint": size + self._samples_hard * self._neighbors_size}

    def backbone_memory(self) -> BytesByPurpose:
        """Return the backbone's device memory per rank."""
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
        """Return the bytes that a rank sends per step for the head, with ring collectives."""
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
            **({"teacher embeddings, gathered": teacher} if teacher else {}),
            **({"a block and its neighbors": self._neighbor_search_traffic()} if self._samples_hard else {}),
        }

    def backbone_traffic(self) -> BytesByPurpose:
        """Return the bytes that a rank sends per step for the backbone, with ring collectives."""
        parameters, _, _ = _trace_backbone(
            self.config.backbone, self.config.optim.precision, _MIN_BATCHNORM_IMAGES
        )
        share = 0.5 if self.config.optim.reduce_dtype == "bfloat16" else 1.0
        return {
            "backbone's gradients": round(2 * (self.world_size - 1) / self.world_size * parameters * share)
        }

    def head_flops(self) -> int:
        """Return the operations of the head's matrix products per step: logits, gradients of embeddings and rows.

        Logits count twice if they are recomputed. Rows that follow a teacher have no gradient.
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
        """Return the bytes between the GPU and its memory per step of the head: rows, and passes over the logits."""
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
        """Return the memory for a block's centers, the compared rows, and the best matches so far."""
        width, rows = self._row_width, min(self.classes_per_rank, rows_per_chunk(self._block))
        compared = rows * (width * (_FLOAT + self._operand_bytes) + self._block * _FLOAT)
        best = self._block * self.config.head.hard_neighbors * (_FLOAT + _DOUBLE) * (2 + 2 * self.world_size)
        return self._block * width * (_FLOAT + self._operand_bytes) + compared + best

    def _neighbor_search_traffic(self) -> int:
        """Return the average per step."""
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
        """Bytes of the neighbor lists, and of those in transit."""
        return (self.num_classes + self._block) * self.config.head.hard_neighbors * _COUNT

    @property
    def _operand_bytes(self) -> int:
        """Bytes of a matmul operand, and of a stored exponential."""
        return _HALF if self.matmul_precision == "half" else _FLOAT

    @property
    def _subcenter_index_bytes(self) -> int:
        """Bytes per logit for the index of its sub-center."""
        return int(self.config.head.subcenters > 1)

    @property
    def _row_width(self) -> int:
        """Size of a class's centers."""
        extra = build_loss(self.config.loss, steps_per_epoch=1).extra_columns
        return (self.config.backbone.embedding_size + extra) * self.config.head.subcenters

    @property
    def _defers_updates(self) -> bool:
        return self.config.head.unsampled == "decay" and self.config.head.uses_sampling

    def _row_buffers(self, row: int, gathered: bool) -> int:
        """Return the bytes per row of a chunk: normalized, gradient, gathered, converted, noise, copies."""
        width, kept = self._row_width, self.storage_dtypes
        converted = sum(dtype != torch.float32 for dtype in kept.values())
        buffers = 2 + converted + (2 if converted else 0)
        if self._defers_updates:
            buffers += len(kept)
        # Two operands of half the size.
        buffers += self.optimizer.temporaries + (self.matmul_precision == "half")
        return buffers * width * _FLOAT + (row if gathered else 0)


def _trace_backbone(config: AnyBackbone, precision: str, images: int) -> tuple[int, int, int]:
    """Return the bytes of the backbone's parameters, of the activations saved for backward, and of the largest one."""
    described = msgspec.json.encode(config)  # settings may contain a dict, which is not hashable
    return _traced_as(described, precision, images)


@functools.cache
def _traced_as(described: bytes, precision: str, images: int) -> tuple[int, int, int]:
    settings: AnyBackbone = msgspec.json.decode(described, type=AnyBackbone)
    if isinstance(settings, CustomBackbone | TimmBackbone):  # their code may read values: run for few images
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
