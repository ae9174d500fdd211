"""One step of the head: all that is in flight between its labels and the update of its rows, and where it stands."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from partialfc.head.active import ActiveClasses
from partialfc.head.active_rows import ActiveRows
from partialfc.head.checks import described
from partialfc.head.losses import Loss
from partialfc.head.results import Forwarded
from partialfc.head.scratch import Sending
from partialfc.head.sharded import ShardedLoss


class Stage(Enum):
    """How far a step has come."""

    PREPARED = "prepared"
    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATED = "updated"
    DISCARDED = "discarded"


@dataclass
class InFlight:
    """What a forward leaves for the backward and the update."""

    rows: ActiveRows
    forwarded: Forwarded
    gradient: Tensor | None = None  # of what backward() was called on by the loss: a scalar on the device


@dataclass(frozen=True)
class Observation:
    """What a closer look at a step finds in its global batch; on the device, the same on every rank."""

    target: Tensor  # [B] cosine of an image with its own class's centre; -inf where it is ignored
    nearest: Tensor  # [B] largest cosine with another active centre; -inf where there is none
    margins: Tensor | None  # [B] drawn margins, in the order of their drawing
    never_positive: Tensor  # [W] of each rank's classes, those that no batch has held so far


class HeadStep:
    """One step of a PartialFC, made by its `prepare`; owns all that is in flight, and refuses a wrong order.

    A RuntimeError says which call comes first. `number` is the step's number, which keys all that is drawn.
    """

    def __init__(
        self, head: object, number: int, batch: int, loss: Loss, classes: ActiveClasses, sending: Sending
    ) -> None:
        self._head = head  # that prepared it
        self.number, self.batch, self.loss = number, batch, loss  # batch: B images, over all ranks
        self.classes = classes  # on the host
        self._sending = sending
        self._stage = Stage.PREPARED
        self._in_flight: InFlight | None = None

    def classes_on_device(self) -> ActiveClasses:
        """The same, their tensors on the device."""
        return self.classes.with_tensors(
            dict(zip(self.classes.tensors(), self._sending.arrived(), strict=True))
        )

    @property
    def stage(self) -> Stage:
        """How far the step has come."""
        return self._stage

    def check_head(self, head: object, call: str) -> None:
        """RuntimeError where another head has prepared the step."""
        if self._head is not head:
            raise RuntimeError(f"{call} of step {self.number}, which another head has prepared")

    def begin(self, rows: ActiveRows, forwarded: Forwarded) -> None:
        """Take over what a forward with gradient has made."""
        self.check_open("forward()")
        self._in_flight, self._stage = InFlight(rows, forwarded), Stage.FORWARD

    def add_gradient(self, gradient: Tensor) -> None:
        """Note the gradient that reached the loss in a backward; more than one add up, as they do in `.grad`."""
        flight = self._in_flight
        if flight is not None:
            flight.gradient = gradient if flight.gradient is None else flight.gradient + gradient
            self._stage = Stage.BACKWARD

    def check_open(self, call: str) -> None:
        """RuntimeError unless the step is prepared and no more."""
        if self._stage is Stage.FORWARD or self._stage is Stage.BACKWARD:
            raise RuntimeError(
                f"{call} of step {self.number} for the second time: update() or discard() comes first"
            )
        self._check_alive(call)

    def seen(self, call: str) -> InFlight:
        """What the forward left; RuntimeError where there was none."""
        self._check_alive(call)
        if self._in_flight is None:
            raise RuntimeError(
                f"{call} of step {self.number}: loss = head(embeddings, step) comes first, with embeddings that want "
                "a gradient (embeddings.requires_grad_() where the backbone is frozen)"
            )
        return self._in_flight

    def end(self, call: str) -> tuple[InFlight, Tensor]:
        """Give up what is in flight, for the update: that, and the loss's gradient."""
        flight = self.seen(call)
        if flight.gradient is None:
            raise RuntimeError(f"{call} of step {self.number}: loss.backward() comes first")
        self._in_flight, self._stage = None, Stage.UPDATED
        return flight, flight.gradient

    def discard(self) -> InFlight | None:
        """Give up what is in flight, if there is any; the step cannot be used any more."""
        self._check_alive("discard()")
        flight, self._in_flight, self._stage = self._in_flight, None, Stage.DISCARDED
        return flight

    def _check_alive(self, call: str) -> None:
        if self._stage is Stage.UPDATED or self._stage is Stage.DISCARDED:
            raise RuntimeError(
                f"{call} of step {self.number}, which was {self._stage.value}: prepare() makes a new step"
            )


def check_step(step: object, call: str) -> None:
    """Raise TypeError if `step` is no step of a head, but labels, for example."""
    if not isinstance(step, HeadStep):
        found = described(step) if isinstance(step, Tensor) else type(step).__name__
        raise TypeError(
            f"{call}: expected a step, got {found}; step = head.prepare(labels, number) makes one of labels"
        )


def loss_of_step(
    embeddings: Tensor, norms: Tensor | None, sharded: ShardedLoss, rows: ActiveRows, step: HeadStep
) -> Tensor:
    """The loss of everyone's embeddings [B, D], with gradient; `step` takes what its update will need."""
    loss: Tensor = _Loss.apply(embeddings, norms, sharded, rows, step)
    return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        norms: Tensor | None,
        sharded: ShardedLoss,
        rows: ActiveRows,
        step: HeadStep,
    ) -> Tensor:
        found = sharded.forward(step.loss, embeddings, norms, rows, keep=True)
        step.begin(rows, found.left)
        ctx.step, ctx.by_norm = step, found.by_norm
        ctx.save_for_backward(found.gradient, embeddings)
        return found.loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, embeddings = ctx.saved_tensors
        weight = grads[0].detach()
        ctx.step.add_gradient(weight)
        by_norm = None if ctx.by_norm is None else _once(ctx.by_norm * weight, embeddings)
        return _once(gradient * weight, embeddings), by_norm, None, None, None


class _DifferentiatedOnce(torch.autograd.Function):
    """A gradient that raises where it is differentiated by the embeddings, in a backward that creates a graph.

    To autograd it is a constant: without this, second derivatives would silently lack the head's part.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, embeddings: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "a PartialFC has no second derivatives: its loss cannot be differentiated twice (create_graph=True)"
        )


def _once(gradient: Tensor, embeddings: Tensor) -> Tensor:
    if not torch.is_grad_enabled():  # no graph is created
        return gradient
    found: Tensor = _DifferentiatedOnce.apply(gradient, embeddings)
    return found
