"""Times a step of the head, ours and a textbook one in turn, beside the bare products and row traffic that it needs.

The textbook head is what a paper's page says: it indexes the weight parameter with the sampled classes, lets autograd
make a dense gradient of it, and hands that to torch.optim.SGD; embeddings are gathered as a list.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.config import CosFace, HeadConfig, Sgd
from partialfc.head import PartialFC

RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
MARGIN = CosFace()
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is timed: C classes, a share of them sampled, b images on each of W ranks, embeddings of width D."""

    num_classes: int
    sample_rate: float
    batch: int  # on a rank
    width: int
    world_size: int
    steps: int  # timed, after the first
    threads: int  # of a rank
    textbook: bool  # whether to time that, too

    def inputs(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """A rank's embeddings [b, D], and the labels [B] of the global batch."""
        generator = torch.Generator().manual_seed(step)
        total = self.batch * self.world_size
        labels = torch.randint(self.num_classes, (total,), generator=generator)
        embeddings = torch.randn(total, self.width, generator=generator)
        return embeddings.chunk(self.world_size)[rank].clone(), labels


class TextbookHead:
    """Partial FC as it is usually written; a rank owns the classes [first, first + len(weight))."""

    def __init__(self, case: Case, rank: int) -> None:
        share = case.num_classes // case.world_size
        self._first, self._world_size = rank * share, case.world_size
        self._num_sampled = int(case.sample_rate * share)
        self._weight = torch.nn.Parameter(torch.normal(0, 0.01, (share, case.width)))
        self._optimizer = torch.optim.SGD([self._weight], lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Forward, backward and update with this rank's embeddings [b, D] and all labels [B]."""
        everyone = [torch.empty_like(embeddings) for _ in range(self._world_size)]
        dist.all_gather(everyone, embeddings.detach())
        gathered = normalize(torch.cat(everyone)).requires_grad_()
        owned = (labels >= self._first) & (labels < self._first + len(self._weight))
        local = labels[owned] - self._first
        index = self._sampled(local)
        weight = self._weight if index is None else self._weight[index]
        columns = local if index is None else torch.searchsorted(index, local)
        logits = (gathered @ normalize(weight).T).clamp(-1, 1)  # [B, S]
        here = owned.nonzero()[:, 0]
        one_hot = torch.zeros_like(logits)
        one_hot[here, columns] = MARGIN.margin
        logits = (logits - one_hot) * MARGIN.scale
        self._backward(logits, here, columns)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _sampled(self, local: Tensor) -> Tensor | None:
        if self._num_sampled >= len(self._weight):
            return None
        chance = torch.rand(len(self._weight))
        chance[local] = 2.0
        return chance.topk(self._num_sampled).indices.sort().values

    def _backward(self, logits: Tensor, here: Tensor, columns: Tensor) -> None:
        """Softmax over all ranks' logits, and its gradient, probability - 1 at the target."""
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


class OurHead:
    def __init__(self, case: Case) -> None:
        self._head = PartialFC(
            case.num_classes,
            case.width,
            MARGIN,
            config=HeadConfig(sample_rate=case.sample_rate),
            optim=Sgd(momentum=MOMENTUM, weight_decay=DECAY),
        )
        self.stored = sum(it.nbytes for it in self._head.centers.tensors.values())  # centres and moments
        self._steps = 0

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Forward, backward and update with this rank's embeddings [b, D] and all labels [B]."""
        local = embeddings.requires_grad_()
        self._head(local, self._head.prepare(labels, self._steps)).backward()
        self._head.update(RATE)
        self._steps += 1


class Floor:
    """What no head of these shapes can do without: three products, and the rows' way from memory and back."""

    def __init__(self, case: Case) -> None:
        share = case.num_classes // case.world_size
        sampled = max(1, round(case.sample_rate * share))
        self._rows = torch.linspace(0, share - 1, sampled).long()
        self._weight, self._momentum = torch.ones(share, case.width), torch.ones(share, case.width)
        self._gathered, self._moments = torch.empty(sampled, case.width), torch.empty(sampled, case.width)
        self._embeddings = torch.randn(case.batch * case.world_size, case.width)
        self._logits = torch.empty(len(self._embeddings), sampled)

    def products(self) -> None:
        """Logits, embeddings' gradient, rows' gradient."""
        torch.mm(self._embeddings, self._gathered.T, out=self._logits)
        self._logits @ self._gathered
        torch.mm(self._logits.T, self._embeddings, out=self._moments)

    def traffic(self) -> None:
        """Rows read twice, moments read and written, rows written."""
        for _ in range(2):
            torch.index_select(self._weight, 0, self._rows, out=self._gathered)
        torch.index_select(self._momentum, 0, self._rows, out=self._moments)
        self._momentum.index_copy_(0, self._rows, self._moments)
        self._weight.index_copy_(0, self._rows, self._gathered)


def timed(function: Callable[..., None], *args: Tensor) -> float:
    """Milliseconds until every rank is through."""
    dist.barrier()
    began = time.perf_counter()
    function(*args)
    dist.barrier()
    return 1000 * (time.perf_counter() - began)


def measure(case: Case, rank: int) -> Row:
    first, extra, times = time_heads(case, rank)
    floor = Floor(case)  # takes as much memory as ours, which is free again
    bare = {name: [timed(getattr(floor, name)) for _ in range(5)][1:] for name in ("products", "traffic")}
    return row_of(
        case, first, extra, times, {name: statistics.median(values) for name, values in bare.items()}
    )


def time_heads(case: Case, rank: int) -> tuple[float, int, dict[str, list[float]]]:
    """Our first step, the bytes that ours takes beyond what it stores, and the milliseconds of the steps after."""
    idle = resident("VmRSS")
    ours = OurHead(case)
    first = timed(ours.step, *case.inputs(0, rank))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of resident memory starts anew
    timed(ours.step, *case.inputs(1, rank))
    extra = resident("VmHWM") - idle - ours.stored
    heads: dict[str, Any] = {"ours": ours}
    if case.textbook:
        heads["textbook"] = TextbookHead(case, rank)
        timed(heads["textbook"].step, *case.inputs(0, rank))
    times: dict[str, list[float]] = {name: [] for name in heads}
    for step in range(2, 2 + case.steps):
        for name, head in heads.items():
            times[name].append(timed(head.step, *case.inputs(step, rank)))
    return first, extra, times


def row_of(
    case: Case, first: float, extra: int, times: dict[str, list[float]], bare: dict[str, float]
) -> Row:
    ours = times["ours"]
    median = statistics.median(ours)
    sampled = max(1, round(case.sample_rate * (case.num_classes // case.world_size)))
    operations = 3 * 2 * case.batch * case.world_size * sampled * case.width
    row: Row = {"case": f"{case.num_classes:,} ids, r = {case.sample_rate:g}", **dataclasses.asdict(case)}
    row |= {
        "ours_ms": median,
        "ours_spread_ms": max(ours) - min(ours),
        "first_step_ms": first,
        "extra_bytes": extra,
        "gflops": operations / median / 1e6,
        "products_ms": bare["products"],
        "traffic_ms": bare["traffic"],
        "over_floor": median / sum(bare.values()),
    }
    if case.textbook:
        row["textbook_ms"] = statistics.median(times["textbook"])
        row["ratio"] = row["textbook_ms"] / median
    return row


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def rank_main(case: Case, rank: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(case.threads)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=case.world_size)
    pipe.send(measure(case, rank))
    dist.destroy_process_group()


def run(case: Case) -> Row:
    """The first rank's figures; steps end when all ranks are through, so they are all ranks'."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(case.world_size)]
        ranks = [
            context.Process(target=rank_main, args=(case, rank, f"{folder}/store", sender))
            for rank, (_, sender) in enumerate(pipes)
        ]
        for process, (_, sender) in zip(ranks, pipes, strict=True):
            process.start()
            sender.close()  # so that a rank that dies ends the wait for it
        rows: list[Row] = [receiver.recv() for receiver, _ in pipes]
        for process in ranks:
            process.join()
    return rows[0] | {"extra_bytes": max(row["extra_bytes"] for row in rows)}


def print_table(rows: Sequence[Row]) -> None:
    table = Table()
    names = [
        "case",
        "textbook_ms",
        "ours_ms",
        "ratio",
        "ours_spread_ms",
        "first_step_ms",
        "products_ms",
        "traffic_ms",
    ]
    for name in [*names, "over_floor", "gflops", "extra MB"]:
        table.add_column(name)
    for row in rows:
        cells = [row.get(name, "-") for name in [*names, "over_floor", "gflops"]] + [row["extra_bytes"] / 1e6]
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases",
        nargs="*",
        default=["1000000:0.1", "1000000:0.02", "100000:1"],
        help="CLASSES:RATE, one or several",
    )
    parser.add_argument("--batch", type=int, default=64, help="images on a rank")
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each head")
    parser.add_argument(
        "--no-textbook", action="store_true", help="time ours alone, which needs half the memory"
    )
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args()
    rows = []
    for text in options.cases:
        classes, rate = text.split(":")
        threads = max(1, len(os.sched_getaffinity(0)) // options.world_size)
        shape = (options.batch, options.width, options.world_size, options.steps, threads)
        rows.append(run(Case(int(classes), float(rate), *shape, textbook=not options.no_textbook)))
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
