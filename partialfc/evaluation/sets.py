"""Evaluation sets: images and scores of their embeddings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import normalize

from partialfc.data.images import ImageArray
from partialfc.errors import InputError

_EQUAL = 1e-6  # largest difference of a component of normalized embeddings

# Scores by name. The first is the primary score: larger is better. NaN: undefined for this set.
Scores = Mapping[str, float]


class ImageSet(Protocol):
    """Images to embed."""

    @property
    def name(self) -> str:
        """Name of the set, for logs and figures."""

    def __len__(self) -> int:
        """Return the number of images."""

    def pixels(self, index: int, size: int) -> ImageArray:
        """Return image `index`, uint8 RGB `[size, size, 3]`.

        Raises:
            InputError: If it cannot be read.
        """


@dataclass(frozen=True)
class SetEvaluation:
    """Scores of a set, and everything to report with them."""

    scores: Scores
    summary: str  # scores as text, for the log
    figures: Iterable[tuple[str, ImageArray]] = ()  # (name, figure) pairs, rendered lazily
    warning: str | None = None  # reason of undefined scores


class EvaluationSet(ImageSet, Protocol):
    """Images, and scores of their embeddings."""

    def evaluate(self, embeddings: Tensor) -> SetEvaluation:
        """Return the scores of the embeddings `[n, D]` of all images: image plus mirror image, not normalized."""


def primary_score(scores: Scores) -> tuple[str, float]:
    """Return name and value of the primary score."""
    return next(iter(scores.items()))


class UnusableEmbeddingsError(InputError):
    """Error for embeddings that are non-finite or all equal, of a diverged or damaged network."""


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
