"""Losses: each is a module of its own, made from its settings here."""

from collections.abc import Callable
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
    MagFace,
    SoftMax,
)
from partialfc.head.losses.adaface import NormAdaptive
from partialfc.head.losses.angular import Angular
from partialfc.head.losses.base import Batch, HardNegatives, Loss, State, TrainsNorms
from partialfc.head.losses.cosine import Cosine
from partialfc.head.losses.curricular import Curricular
from partialfc.head.losses.elastic import ElasticAngular, ElasticCosine
from partialfc.head.losses.magface import Magnitude

__all__ = ["Batch", "HardNegatives", "Loss", "State", "TrainsNorms", "loss_of"]


_LOSSES: dict[type[AnyMargin], Callable[[Any], Loss]] = {
    SoftMax: lambda it: Cosine(it.scale, margin=0.0),
    CosFace: lambda it: Cosine(it.scale, it.margin),
    ArcFace: lambda it: Angular(it, m1=1.0, m2=it.margin, m3=0.0),
    Combined: lambda it: Angular(it, m1=it.m1, m2=it.m2, m3=it.m3),
    CurricularFace: Curricular,
    ElasticArcFace: ElasticAngular,
    ElasticCosFace: ElasticCosine,
    AdaFace: NormAdaptive,
    MagFace: Magnitude,
}


def loss_of(settings: AnyMargin) -> Loss:
    """The loss that a recipe's `margin` means."""
    return _LOSSES[type(settings)](settings)
