"""Losses: each is a module of its own, made from its settings here."""

from typing import assert_never

from partialfc.config import (
    AdaFace,
    AnyMargin,
    ArcFace,
    Combined,
    CosFace,
    ElasticArcFace,
    ElasticCosFace,
    SoftMax,
)
from partialfc.head.losses.adaface import NormAdaptive
from partialfc.head.losses.angular import Angular
from partialfc.head.losses.base import Batch, Loss, State
from partialfc.head.losses.cosine import Cosine
from partialfc.head.losses.elastic import ElasticAngular, ElasticCosine

__all__ = ["Batch", "Loss", "State", "loss_of"]


def loss_of(settings: AnyMargin) -> Loss:
    """The loss that a recipe's `margin` means."""
    match settings:
        case SoftMax():
            return Cosine(settings.scale, margin=0.0)
        case CosFace():
            return Cosine(settings.scale, settings.margin)
        case ArcFace():
            return Angular(settings, m1=1.0, m2=settings.margin, m3=0.0)
        case Combined():
            return Angular(settings, m1=settings.m1, m2=settings.m2, m3=settings.m3)
        case ElasticArcFace():
            return ElasticAngular(settings)
        case ElasticCosFace():
            return ElasticCosine(settings)
        case AdaFace():
            return NormAdaptive(settings)
    assert_never(settings)
