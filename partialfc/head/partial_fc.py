"""PartialFC: softmax over class centres that are split across ranks, on the classes a step works on.

"Partial FC" (arXiv 2010.05222) and "Killing Two Birds with One Stone" (2203.15565).
Legend: W ranks, B images in the global batch, b = B / W of them on this rank, C classes, S of this rank's at
work in a step, D embedding width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from partialfc.config import AnyMargin, AnyOptimizer, HeadConfig, Sgd
from partialfc.head import margins, sampling
from partialfc.head.centers import Centers
from partialfc.head.cross_entropy import ChunkedCrossEntropy
from partialfc.head.products import Products
from partialfc.head.rows import rounding
from partialfc.head.sampling import IGNORE, Work
from partialfc.head.shard import class_range
from partialfc.runtime import comm


@dataclass(frozen=True)
class Observation:
    """Of a step's global batch, on the device, the same on every rank."""

    target: Tensor  # [B] cosine of an image with its own class's centre; -inf where it is ignored
    nearest: Tensor  # [B] largest cosine with another centre at work; -inf where there is none
    margins: Tensor | None  # [B] elastic margins, in the order of their drawing
    never_positive: Tensor  # [W] of each rank's classes, those that no batch has held so far


class PartialFC(nn.Module):
    """The classification head of a training run, sharded over `group` (default: all ranks).

        work = head.prepare(labels, step)   # on the host, ahead of time
        loss = head(embeddings, work)       # the same scalar on every rank
        loss.backward()                     # the embeddings' gradient; the centres are untouched
        head.update(rate, finite)           # the centres

    The loss is the mean over the global batch, and an embedding's gradient is that of this loss: parameters that
    every rank has a copy of *sum* their gradients over the ranks. (DistributedDataParallel takes their mean.)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: AnyMargin,
        *,
        config: HeadConfig = HeadConfig(),
        optim: AnyOptimizer = Sgd(),
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.group = group if group is not None else comm.everyone()
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.margin, self.config, self.seed = margin, config, seed
        self.centers = Centers(
            class_range(num_classes, self.group.rank(), self.group.size()),
            embedding_size,
            config,
            optim,
            seed=seed,
            device=torch.empty(0, device=device).device,  # with its index, which other threads need
            dtype=dtype,
        )
        self._cross_entropy = ChunkedCrossEntropy(
            self.centers,
            margin,
            interclass_threshold=config.interclass_threshold,
            logits_budget=config.logits_budget << 20,
            products=Products(lower=config.products == "bfloat16"),
            group=self.group,
        )
        self._met = np.zeros(len(self.centers.owned), np.uint8)  # 1: was in a batch
        self._pending: tuple[Work, Work] | None = (
            None  # of the latest forward: on the host, and on the device
        )

    def prepare(self, labels: Tensor, step: int) -> Work:
        """Sample the classes of a step, and start to bring their rows to the device where they live elsewhere.

        labels: integers [B] of the global batch, on the host, equal on every rank. No communication, and nothing
        that waits for the device; cost O(B + S). Best called while the step before computes; steps are to be
        taken in the order in which they were prepared. Raises ValueError on a label that is no class and not -1.
        """
        known = self._checked(labels)
        owned = self.centers.owned
        here = np.flatnonzero((known >= owned.start) & (known < owned.stop))
        here = here[np.argsort(known[here], kind="stable")]
        own = known[here] - owned.start  # [N] local rows
        rows = self._rows(own, step)
        columns = own if rows is None else np.searchsorted(rows, own)
        drawn = margins.draw(self.margin, self.seed, step, len(known))
        valid = known != IGNORE
        work = Work(
            rows=None if rows is None else torch.from_numpy(rows),
            host_rows=rows,
            here=torch.from_numpy(here),
            columns=torch.from_numpy(columns),
            host_columns=columns,
            valid=torch.from_numpy(valid),
            positions=torch.from_numpy(np.flatnonzero(valid)),
            drawn=None if drawn is None else torch.from_numpy(drawn).to(self.centers.dtype),
            lifted=self._lifted(rows, own),
            noise=self._noise(rows, step),
        )
        self.centers.fetch(work)
        return work

    def forward(self, embeddings: Tensor, work: Work) -> Tensor:
        """Mean loss over the valid images of the global batch; the same scalar on every rank.

        embeddings: this rank's [b, D], not normalised, of any floating type; computed on in the centres'
        type. Collectives: one all-gather and one all-reduce, one more where a margin has an order; backward:
        one reduce-scatter.
        """
        on_device = self.centers.begin(work)
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = normalize(embeddings.to(self.centers.dtype))
            everyone = comm.gather_rows(unit, self.group)  # [B, D]
            loss = self._cross_entropy.loss(everyone, on_device)
        self._met[work.host_columns if work.host_rows is None else work.host_rows[work.host_columns]] = 1
        self._pending = work, on_device
        return loss

    @torch.no_grad()
    def update(self, rate: float, finite: Tensor | None = None) -> None:
        """After backward(): one optimizer step, at learning rate `rate`, of the rows at work, and of no others.

        finite: a bool scalar on the device; where false nothing changes. The rows' gradient is that of the loss as
        `forward` returned it, whatever factor (a loss scale) it was multiplied by before backward().
        """
        assert self._pending is not None, "update() follows forward() and backward()"
        (work, on_device), self._pending = self._pending, None
        if finite is None:
            finite = torch.ones((), dtype=torch.bool, device=self.centers.device)
        step = finite.to(self.centers.dtype) * rate
        self._cross_entropy.update(on_device, step, finite)
        self.centers.end(work, step, finite)

    @torch.no_grad()
    def observe(self) -> Observation:
        """What the latest forward saw; called after backward() and before update(). One more look at the rows at work,
        and two small collectives; nothing waits for the device.
        """
        assert self._pending is not None, "observe() follows forward() and backward()"
        work = self._pending[1]
        target, nearest = self._cross_entropy.cosines(work)
        never_positive = len(self._met) - int(np.count_nonzero(self._met))
        everyones = comm.of_each_rank(never_positive, self.group, self.centers.device)
        return Observation(target, nearest, work.drawn, everyones)

    def state(self, length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As the centres', with the classes that batches have held."""
        shards, shared = self.centers.state(length)
        return shards | {"met": torch.from_numpy(self._met)}, shared

    def _checked(self, labels: Tensor) -> NDArray[np.int64]:
        assert labels.device.type == "cpu" and not labels.is_floating_point() and labels.dim() == 1
        known = labels.numpy().astype(np.int64)
        wrong = np.flatnonzero((known < IGNORE) | (known >= self.num_classes))
        if len(wrong):
            raise ValueError(
                f"image {wrong[0]} of the batch has label {known[wrong[0]]}; "
                f"wanted 0 to {self.num_classes - 1}, or {IGNORE} to ignore it"
            )
        return known

    def _rows(self, own: NDArray[np.int64], step: int) -> NDArray[np.int64] | None:
        if self.config.sample_rate == 1:
            return None
        owned = self.centers.owned
        drawn = sampling.sampled(self.num_classes, self.config.sample_rate, self.seed, step, owned)
        return np.union1d(drawn - owned.start, own)

    def _lifted(self, rows: NDArray[np.int64] | None, own: NDArray[np.int64]) -> Tensor | None:
        """A class at work by chance stands for C / n classes; one that is in the batch, always there, for
        itself.
        """
        if rows is None or self.config.correction == "none":
            return None
        share = sampling.num_strata(self.num_classes, self.config.sample_rate) / self.num_classes
        lifted = np.where(np.isin(rows, own), 0.0, -math.log(share))
        return torch.from_numpy(lifted).to(self.centers.dtype)

    def _noise(self, rows: NDArray[np.int64] | None, step: int) -> Tensor | None:
        if not self.centers.noisy:
            return None
        owned = self.centers.owned
        classes = np.arange(owned.start, owned.stop) if rows is None else rows + owned.start
        return rounding.noise_of(classes, self.seed, step)
