"""Losses, one module for each paper, and how they are built from a recipe."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from partialfc.config import (
    AdaFace,
    AnyLoss,
    ArcFace,
    CombinedMargin,
    CosFace,
    CosineSoftmax,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    LinearSoftmax,
    MagFace,
    SphereFace2,
    UniFace,
)
from partialfc.config.scheduled import Scheduled, scheduled_values, value_at
from partialfc.errors import InputError
from partialfc.head.losses.adaface import AdaFaceLoss
from partialfc.head.losses.arcface import ArcFaceLoss, CombinedMarginLoss
from partialfc.head.losses.base import HardNegativeRule, LossInputs, LossState, MarginLoss, TargetLogit
from partialfc.head.losses.cosface import CosFaceLoss
from partialfc.head.losses.curricularface import CurricularFaceLoss
from partialfc.head.losses.elasticface import ElasticArcFaceLoss, ElasticCosFaceLoss
from partialfc.head.losses.linear import LinearSoftmaxLoss
from partialfc.head.losses.magface import MagFaceLoss
from partialfc.head.losses.sigmoid import SigmoidLoss
from partialfc.head.losses.sphereface2 import SphereFace2Loss
from partialfc.head.losses.uniface import UniFaceLoss

__all__ = [
    "HardNegativeRule", "LossInputs", "LossSchedule", "LossState", "MarginLoss", "SigmoidLoss", "TargetLogit", "build_loss"
]  # fmt: skip


ValueOf = Callable[[Scheduled[float]], float]  # value of a setting at the step of the loss

_LOSSES: dict[type[AnyLoss], Callable[[Any, ValueOf], MarginLoss]] = {
    LinearSoftmax: lambda loss, value: LinearSoftmaxLoss(),
    CosineSoftmax: lambda loss, value: CosFaceLoss(value(loss.scale), margin=0.0),
    CosFace: lambda loss, value: CosFaceLoss(value(loss.scale), value(loss.margin)),
    ArcFace: lambda loss, value: ArcFaceLoss(loss, value(loss.scale), value(loss.margin)),
    CombinedMargin: lambda loss, value: CombinedMarginLoss(
        loss, value(loss.scale), m1=value(loss.m1), m2=value(loss.m2), m3=value(loss.m3)
    ),
    CurricularFace: lambda loss, value: CurricularFaceLoss(loss, value(loss.scale), value(loss.margin)),
    ElasticArcFace: lambda loss, value: ElasticArcFaceLoss(loss, value(loss.scale), value(loss.margin)),
    ElasticCosFace: lambda loss, value: ElasticCosFaceLoss(loss, value(loss.scale), value(loss.margin)),
    AdaFace: lambda loss, value: AdaFaceLoss(loss, value(loss.scale), value(loss.margin)),
    MagFace: lambda loss, value: MagFaceLoss(loss, value(loss.scale)),
    UniFace: lambda loss, value: UniFaceLoss(loss, value(loss.scale), value(loss.margin)),
    SphereFace2: lambda loss, value: SphereFace2Loss(loss, value(loss.scale), value(loss.margin)),
}


def build_loss(config: AnyLoss, step: int = 0, steps_per_epoch: int | None = None) -> MarginLoss:
    """Return the loss of a recipe at a step.

    Raises:
        InputError: The settings have no implementation.
        ValueError: Stages begin at epochs, but `steps_per_epoch` is unknown.
    """
    value = partial(value_at, step=step, steps_per_epoch=steps_per_epoch)
    if type(config) not in _LOSSES:
        raise InputError(
            f"loss.name: {type(config).__name__} has settings, but no implementation in head/losses"
        )
    return _LOSSES[type(config)](config, value)


class LossSchedule:
    """Losses of all steps: settings of the step, with one state.

    Args:
        config: Settings of the loss.
        steps_per_epoch: Required if stages of the settings begin at epochs.
        num_classes: Number of active classes of a step.
        device: Device of the state.
        dtype: Type of the state.

    Raises:
        ValueError: Stages begin at epochs, but `steps_per_epoch` is unknown.
    """

    def __init__(
        self,
        config: AnyLoss,
        steps_per_epoch: int | None,
        num_classes: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._settings, self._steps_per_epoch = config, steps_per_epoch
        self._has_stages = bool(scheduled_values({"loss": config}, 0, steps_per_epoch))
        self._first = build_loss(config, 0, steps_per_epoch)
        self._first.init_state(num_classes)
        self._first.state = {name: value.to(device, dtype) for name, value in self._first.state.items()}

    @property
    def state(self) -> LossState:
        """State after the steps so far; steps and `load_state_dict` write into its tensors."""
        return self._first.state

    def __call__(self, step: int) -> MarginLoss:
        """Return the loss of a step; the same object for all steps if no setting has stages."""
        if not self._has_stages:
            return self._first
        loss = build_loss(self._settings, step, self._steps_per_epoch)
        loss.state = self._first.state
        return loss
