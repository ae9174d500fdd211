"""Losses: each is a module of its own, made from its settings here."""

from collections.abc import Callable
from functools import partial
from typing import Any

from partialfc.config import (
    AdaFace,
    AnyMargin,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    Linear,
    MagFace,
    SoftMax,
    SphereFace2,
    UniFace,
)
from partialfc.config.stages import Staged, value_at
from partialfc.errors import InputError
from partialfc.head.losses.adaface import NormAdaptive
from partialfc.head.losses.angular import Angular
from partialfc.head.losses.base import Batch, HardNegatives, Loss, State, TrainsNorms
from partialfc.head.losses.binary import Binary, Spherical, Unified
from partialfc.head.losses.cosine import Cosine
from partialfc.head.losses.curricular import Curricular
from partialfc.head.losses.elastic import ElasticAngular, ElasticCosine
from partialfc.head.losses.linear import LinearLayer
from partialfc.head.losses.magface import Magnitude

__all__ = ["Batch", "Binary", "HardNegatives", "LinearLayer", "Loss", "State", "TrainsNorms", "loss_of"]


Now = Callable[[Staged[float]], float]  # what a setting is in the step that a loss is made for

_LOSSES: dict[type[AnyMargin], Callable[[Any, Now], Loss]] = {
    Linear: lambda it, now: LinearLayer(),
    SoftMax: lambda it, now: Cosine(now(it.scale), margin=0.0),
    CosFace: lambda it, now: Cosine(now(it.scale), now(it.margin)),
    ArcFace: lambda it, now: Angular(it, now(it.scale), m1=1.0, m2=now(it.margin), m3=0.0),
    Combined: lambda it, now: Angular(it, now(it.scale), m1=now(it.m1), m2=now(it.m2), m3=now(it.m3)),
    CurricularFace: lambda it, now: Curricular(it, now(it.scale), now(it.margin)),
    ElasticArcFace: lambda it, now: ElasticAngular(it, now(it.scale), now(it.margin)),
    ElasticCosFace: lambda it, now: ElasticCosine(it, now(it.scale), now(it.margin)),
    AdaFace: lambda it, now: NormAdaptive(it, now(it.scale), now(it.margin)),
    MagFace: lambda it, now: Magnitude(it, now(it.scale)),
    UniFace: lambda it, now: Unified(it, now(it.scale), now(it.margin)),
    SphereFace2: lambda it, now: Spherical(it, now(it.scale), now(it.margin)),
}


def loss_of(settings: AnyMargin, step: int = 0, steps_per_epoch: int | None = None) -> Loss:
    """The loss that a recipe's `margin` means in a step. ValueError where stages begin at epochs of unknown length."""
    now = partial(value_at, step=step, steps_per_epoch=steps_per_epoch)
    if type(settings) not in _LOSSES:
        raise InputError(
            f"margin.name: {type(settings).__name__} has settings, but no implementation in head/losses"
        )
    return _LOSSES[type(settings)](settings, now)
