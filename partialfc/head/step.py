"""State of one step of the head, from its labels to the update of the centers, and its autograd function."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from partialfc.head.arguments import describe_tensor
from partialfc.head.buffers import PendingUpload
from partialfc.head.centers import ActiveCenters
from partialfc.head.forward import FORWARDS, ForwardContext, ForwardInputs
from partialfc.head.losses import MarginLoss
from partialfc.head.sampling import ActiveClasses
from partialfc.head.workspace import Workspace


class StepState(Enum):
    """Progress of a step."""

    PREPARED = "prepared"
    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATED = "updated"
    DISCARDED = "discarded"


@dataclass(frozen=True)
class InFlight:
    """Values of a forward that the update needs."""

    centers: ActiveCenters
    context: ForwardContext


@dataclass(frozen=True)
class Observation:
    """Diagnostics of a step and its global batch, on the device and equal on all ranks."""

    target: Tensor  # [B], cosines with the centers of the own classes; -inf for the label -1
    nearest: Tensor  # [B], largest cosine with another active center; -inf if no such center is active
    margins: Tensor | None  # [B], random margins in the order of their drawing
    never_positive: Tensor  # [W], number of classes of each rank that no batch contained so far


class HeadStep:
    """One step of a PartialFC, created by `prepare`.

    Calls in a wrong order raise a RuntimeError that names the missing call.

    Attributes:
        number: Index of the step, which keys all random draws.
        batch: Number of images of all ranks, B.
        loss: Loss of the step.
        classes: Active classes, on the host.
    """

    def __init__(
        self,
        head: object,
        number: int,
        batch: int,
        loss: MarginLoss,
        classes: ActiveClasses,
        upload: PendingUpload,
    ) -> None:
        self._head = head
        self.number, self.batch, self.loss = number, batch, loss
        self.classes = classes
        self._upload = upload
        self._state = StepState.PREPARED
        self._in_flight: InFlight | None = None
        self._gradient: Tensor | None = None  # scalar, derivative of the differentiated value by the loss

    def classes_on_device(self, work: Workspace) -> ActiveClasses:
        """Return the active classes with tensors on the device."""
        tensors = dict(zip(self.classes.tensors(), self._upload.wait(), strict=True))
        return self.classes.on_device(tensors, work.kernels.sample_rows, work.dtype)

    @property
    def state(self) -> StepState:
        """Progress of the step."""
        return self._state

    def check_head(self, head: object, call: str) -> None:
        """Raise RuntimeError if another head has prepared the step."""
        if self._head is not head:
            raise RuntimeError(
                f"{call}: expected a step of this head, got step {self.number} of another head"
            )

    def begin(self, centers: ActiveCenters, context: ForwardContext) -> None:
        """Store the values of a forward with gradient."""
        self.check_open("forward()")
        self._in_flight, self._state = InFlight(centers, context), StepState.FORWARD

    def add_gradient(self, gradient: Tensor) -> None:
        """Accumulate the gradient that reaches the loss in a backward, as `.grad` does."""
        if self._in_flight is not None:
            self._gradient = gradient if self._gradient is None else self._gradient + gradient
            self._state = StepState.BACKWARD

    def check_open(self, call: str) -> None:
        """Raise RuntimeError unless the step is prepared and has no forward with gradient."""
        if self._state is StepState.FORWARD or self._state is StepState.BACKWARD:
            raise RuntimeError(
                f"{call} of step {self.number} for the second time; call update() or discard() first"
            )
        self._check_alive(call)

    def seen(self, call: str) -> InFlight:
        """Return the values of the forward; raise RuntimeError if there was none."""
        self._check_alive(call)
        if self._in_flight is None:
            raise RuntimeError(
                f"{call} of step {self.number}: call loss = head(embeddings, step) first, with embeddings that require a "
                "gradient (embeddings.requires_grad_() if the backbone is frozen)"
            )
        return self._in_flight

    def end(self, call: str) -> tuple[InFlight, Tensor]:
        """Return and release the values of the forward and the gradient of the loss, for the update."""
        flight = self.seen(call)
        if self._gradient is None:
            raise RuntimeError(f"{call} of step {self.number}: call loss.backward() first")
        self._in_flight, self._state = None, StepState.UPDATED
        return flight, self._gradient

    def discard(self) -> None:
        """Release the values of the forward; the step cannot be used any more."""
        self._check_alive("discard()")
        self._in_flight, self._state = None, StepState.DISCARDED

    def _check_alive(self, call: str) -> None:
        if self._state is StepState.UPDATED or self._state is StepState.DISCARDED:
            raise RuntimeError(
                f"{call} of step {self.number}, which was {self._state.value}; create a new step with prepare()"
            )


def check_step(step: object, call: str) -> None:
    """Raise TypeError if `step` is not a HeadStep but, for example, labels."""
    if not isinstance(step, HeadStep):
        found = describe_tensor(step) if isinstance(step, Tensor) else type(step).__name__
        raise TypeError(
            f"{call}: expected a step, got {found}; create one with step = head.prepare(labels, number)"
        )


def head_loss(work: Workspace, inputs: ForwardInputs, step: HeadStep) -> Tensor:
    """Return the loss of the gathered embeddings, with gradient; `step` keeps what its update needs."""
    loss: Tensor = _HeadLoss.apply(inputs.embeddings, inputs.norms, work, inputs, step)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    """Autograd function whose forward computes the gradients; backward multiplies them by that of the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        norms: Tensor | None,
        work: Workspace,
        inputs: ForwardInputs,
        step: HeadStep,
    ) -> Tensor:
        result = FORWARDS[step.loss.objective](work, inputs._replace(embeddings=embeddings, norms=norms))
        step.begin(inputs.centers, result.context)
        ctx.step, ctx.norm_gradients = step, result.norm_gradients
        ctx.save_for_backward(result.embedding_gradients, embeddings)
        return result.loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, embeddings = ctx.saved_tensors
        weight = grads[0].detach()
        ctx.step.add_gradient(weight)
        norm_gradients = (
            None if ctx.norm_gradients is None else _once(ctx.norm_gradients * weight, embeddings)
        )
        return _once(gradients * weight, embeddings), norm_gradients, None, None, None


class _DifferentiatedOnce(torch.autograd.Function):
    """Gradient that raises if it is differentiated by the embeddings, in a backward with create_graph=True.

    Autograd treats the gradient as a constant. Without this, second derivatives would silently lack the head's part.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, embeddings: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "a PartialFC has no second derivatives; its loss cannot be differentiated twice (create_graph=True)"
        )


def _once(gradient: Tensor, embeddings: Tensor) -> Tensor:
    if not torch.is_grad_enabled():  # no graph is created
        return gradient
    differentiated: Tensor = _DifferentiatedOnce.apply(gradient, embeddings)  # type: ignore[no-untyped-call]
    return differentiated
