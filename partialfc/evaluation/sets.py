"""What a run is evaluated on: sets that have images, and score their embeddings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import normalize

from partialfc.data.images import ImageArray
from partialfc.errors import InputError

_EQUAL = 1e-6  # largest difference of a component of normalized embeddings

# by name; the first is the headline: what is watched, more is better. A score that a set cannot give is NaN.
Scores = Mapping[str, float]


class ImageSet(Protocol):
    """Images that are embedded."""

    @property
    def name(self) -> str:
        """The set's, in logs and figures."""

    def __len__(self) -> int:
        """How many images there are."""

    def pixels(self, index: int, size: int) -> ImageArray:
        """Image `index`, uint8 RGB [size, size, 3]. InputError names one that cannot be read."""


@dataclass(frozen=True)
class SetEvaluation:
    """What embeddings of a set's images are worth. Whoever reports scores prints what comes."""

    scores: Scores
    summary: str  # the scores, for a line of the log
    figures: Iterable[tuple[str, ImageArray]] = ()  # with their names; each is drawn when it is asked for
    warning: str | None = None  # why scores are undefined


class EvaluationSet(ImageSet, Protocol):
    """Images, and what embeddings of them are worth."""

    def evaluate(self, embeddings: Tensor) -> SetEvaluation:
        """Of the embeddings [n, D] of all images: each the sum over the image and its mirror image, as the network gives
        them, not normalised.
        """


def primary_score(scores: Scores) -> tuple[str, float]:
    """The score that is watched: its name and its value."""
    return next(iter(scores.items()))


class UnusableEmbeddingsError(InputError):
    """Embeddings that tell no two images apart, or are not finite: of a network that diverged, or is damaged."""


def check_embeddings(embeddings: Tensor, name: str) -> None:
    """Raise UnusableEmbeddingsError if some embeddings `[n, D]` of the set are not finite, or all are equal."""
    wrong = int((~embeddings.isfinite()).any(1).sum())
    if wrong:
        raise UnusableEmbeddingsError(
            f"{name}: expected finite embeddings, got {wrong} of {len(embeddings)} that are not"
        )
    unit = normalize(embeddings.float())
    if len(unit) > 1 and not ((unit - unit[0]).abs() > _EQUAL).any():
        raise UnusableEmbeddingsError(
            f"{name}: expected embeddings that differ, got {len(unit)} that are all equal"
        )
