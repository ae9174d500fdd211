"""Baselines of benchmarks/head.py: a textbook Partial FC, and a lower bound for any head.

The textbook head follows the papers directly. It indexes the weight parameter with the sampled classes, gets
a dense gradient from autograd, and passes it to torch.optim.SGD. Embeddings are gathered as a list.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import SGD, CosFace, HeadConfig
from partialfc.runtime import comm

LR = 0.1
OPTIM = SGD(lr=LR, momentum=0.9, weight_decay=5e-4)
_COSINE, _SCALE = 0.35, 64.0
MARGIN = CosFace(scale=_SCALE, margin=_COSINE)


@dataclass(frozen=True)
class BenchmarkCase:
    """Benchmark case: C classes, some of them sampled, b images on each of W ranks, embedding size D."""

    num_classes: int
    batch: int  # per rank
    width: int
    world_size: int
    steps: int  # timed, after the first
    threads: int  # per rank
    device: str
    head: HeadConfig
    one_rank: bool  # run one rank only, with simulated communication
    textbook: bool  # whether to time the textbook head, too

    def labels(self, step: int) -> Tensor:
        """Return distinct labels `[B]` of the global batch."""
        total = self.batch * self.world_size
        return torch.from_numpy(np.random.default_rng(step).choice(self.num_classes, total, replace=False))

    def embeddings(self, step: int) -> Tensor:
        """Return the embeddings `[B, D]` of the global batch."""
        generator = torch.Generator().manual_seed(step)
        return torch.randn(self.batch * self.world_size, self.width, generator=generator)


class CompletedWork:
    """Completed collective."""

    def wait(self) -> None:
        """Return immediately."""


@contextmanager
def fake_gather(embeddings: Tensor) -> Iterator[None]:
    """Replace all-gathers of a single rank: the rows of other ranks come from `embeddings` `[B, D]`."""
    made_up = normalize(embeddings)

    def gather(rows: Tensor, local: Tensor, **_: Any) -> CompletedWork:
        rows.copy_(made_up)
        rows[: len(local)] = local
        return CompletedWork()

    with mock.patch.object(comm, "_all_gather", gather):
        yield


class TextbookHead:
    """Textbook Partial FC; a rank owns the classes [first, first + len(weight))."""

    def __init__(self, case: BenchmarkCase, rank: int) -> None:
        share = case.num_classes // case.world_size
        self._first, self._world_size = rank * share, case.world_size
        self._num_sampled = int(case.head.max_sample_rate * share)
        self._weight = torch.nn.Parameter(torch.normal(0, 0.01, (share, case.width), device=case.device))
        self._optimizer = torch.optim.SGD(
            [self._weight], lr=LR, momentum=OPTIM.momentum, weight_decay=OPTIM.weight_decay
        )

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Run forward, backward and update with this rank's embeddings `[b, D]` and all labels `[B]`."""
        labels = labels.to(embeddings.device)
        everyone = [torch.empty_like(embeddings) for _ in range(self._world_size)]
        dist.all_gather(everyone, embeddings.detach())
        gathered = normalize(torch.cat(everyone)).requires_grad_()
        owned = (labels >= self._first) & (labels < self._first + len(self._weight))
        local = labels[owned] - self._first
        index = self._sampled(local)
        weight = self._weight if index is None else self._weight[index]
        columns = local if index is None else torch.searchsorted(index, local)
        logits = (gathered @ normalize(weight).T).clamp(-1, 1)  # `[B, S]`
        here = owned.nonzero()[:, 0]
        one_hot = torch.zeros_like(logits)
        one_hot[here, columns] = _COSINE
        logits = (logits - one_hot) * _SCALE
        self._backward(logits, here, columns)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _sampled(self, local: Tensor) -> Tensor | None:
        if self._num_sampled >= len(self._weight):
            return None
        chance = torch.rand(len(self._weight), device=local.device)
        chance[local] = 2.0
        return chance.topk(self._num_sampled).indices.sort().values

    def _backward(self, logits: Tensor, here: Tensor, columns: Tensor) -> None:
        """Compute the softmax over all ranks' logits, and its gradient, probability - 1 at the target."""
        with torch.no_grad():
            largest = logits.max(dim=1, keepdim=True).values
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            probability = (logits - largest).exp_()
            total = probability.sum(dim=1, keepdim=True)
            dist.all_reduce(total)
            probability.div_(total)
            probability[here, columns] -= 1
            probability.div_(len(logits))
        logits.backward(probability)


class LowerBound:
    """Lower bound of any head of these shapes: three matmuls, and the memory traffic of the rows."""

    def __init__(self, case: BenchmarkCase) -> None:
        share = case.num_classes // case.world_size
        sampled = max(1, round(case.head.max_sample_rate * share))
        empty, shape = torch.empty, (share, case.width)
        self._rows = torch.linspace(0, share - 1, sampled, dtype=torch.float64).long().to(case.device)
        self._weight, self._momentum = (
            torch.ones(shape, device=case.device),
            torch.ones(shape, device=case.device),
        )
        self._gathered = empty(sampled, case.width, device=case.device)
        self._moments = empty(sampled, case.width, device=case.device)
        self._embeddings = torch.randn(case.batch * case.world_size, case.width, device=case.device)
        self._logits = empty(len(self._embeddings), sampled, device=case.device)

    def matmuls(self) -> None:
        """Run the matmuls: logits, gradient of embeddings, gradient of rows."""
        torch.mm(self._embeddings, self._gathered.T, out=self._logits)
        self._logits @ self._gathered
        torch.mm(self._logits.T, self._embeddings, out=self._moments)

    def memory_traffic(self) -> None:
        """Run the memory traffic: rows read twice, optimizer state read and written, rows written."""
        for _ in range(2):
            torch.index_select(self._weight, 0, self._rows, out=self._gathered)
        torch.index_select(self._momentum, 0, self._rows, out=self._moments)
        self._momentum.index_copy_(0, self._rows, self._moments)
        self._weight.index_copy_(0, self._rows, self._gathered)
