"""What a run is evaluated on: sets that have images, and score their embeddings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from partialfc.data.images import Pixels

Scores = Mapping[str, float]  # by name; the first is the headline: what is watched, more is better


class ImageSet(Protocol):
    """Images that are embedded."""

    @property
    def name(self) -> str:
        """The set's, in logs and figures."""

    def __len__(self) -> int:
        """How many images there are."""

    def pixels(self, index: int, size: int) -> Pixels:
        """Image `index`, uint8 RGB [size, size, 3]. InputError names one that cannot be read."""


@dataclass(frozen=True)
class Evaluated:
    """What embeddings of a set's images are worth. Whoever reports scores prints what comes."""

    scores: Scores
    in_words: str  # the scores, for a line of the log
    pictures: Iterable[tuple[str, Pixels]] = ()  # with their names; each is drawn when it is asked for


class EvaluationSet(ImageSet, Protocol):
    """Images, and what embeddings of them are worth."""

    def evaluate(self, embeddings: Tensor) -> Evaluated:
        """Of the embeddings [n, D] of all images: each the sum over the image and its mirror image, as the network gives
        them, not normalised.
        """


def headline(scores: Scores) -> tuple[str, float]:
    """The score that is watched: its name and its value."""
    return next(iter(scores.items()))
