"""Verification sets as the field's .bin files have them; nothing in a file is executed."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from partialfc.data import images
from partialfc.data.images import EncodedImage, ImageArray
from partialfc.errors import InputError
from partialfc.evaluation import metrics, safe_pickle
from partialfc.evaluation.sets import Scores, SetEvaluation, check_embeddings
from partialfc.runtime.exit_codes import format_error


@dataclass(frozen=True)
class VerificationPairs:
    """A verification set of P pairs."""

    path: Path
    images: list[EncodedImage]  # [2 P]; 2 i and 2 i + 1 are pair i
    is_same: NDArray[np.bool_]  # [P] whether a pair shows one person

    @property
    def name(self) -> str:
        """The file's, without .bin."""
        return self.path.stem

    def __len__(self) -> int:
        return len(self.images)

    def similarities(self, embeddings: Tensor) -> NDArray[np.float64]:
        """Return the cosine `[P]` of each pair, given the embeddings `[2 P, D]` of all images."""
        check_embeddings(embeddings, self.name)
        unit = normalize(embeddings)
        found: NDArray[np.float64] = (unit[0::2] * unit[1::2]).sum(1).double().cpu().numpy()
        return found

    def evaluate(self, embeddings: Tensor) -> SetEvaluation:
        """See EvaluationSet, and metrics.verify. Pictures: the ROC curve, and the pairs that are hardest to tell."""
        similarity = self.similarities(embeddings)
        scores = metrics.scores_of_pairs(similarity, self.is_same)
        if one_kind := metrics.one_kind(self.is_same):
            return SetEvaluation(scores, _format_scores(scores), warning=f"{self.name}: {one_kind}")
        return SetEvaluation(scores, _format_scores(scores), self._iter_figures(similarity))

    def score_insightface(self, embeddings: Tensor) -> Scores:
        """insightface_accuracy and insightface_accuracy_std: see metrics.grid_accuracy. embeddings: as of `evaluate`."""
        if metrics.one_kind(self.is_same):
            return dict.fromkeys(("insightface_accuracy", "insightface_accuracy_std"), math.nan)
        unit = normalize(embeddings.double()).cpu().numpy()
        distance = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
        accuracy, deviation = metrics.insightface_accuracy(distance, self.is_same)
        return {"insightface_accuracy": accuracy, "insightface_accuracy_std": deviation}

    def _iter_figures(self, similarity: NDArray[np.float64]) -> Iterator[tuple[str, ImageArray]]:
        from partialfc.evaluation import plots  # here: matplotlib takes a second

        yield "roc", plots.plot_roc(self.name, similarity, self.is_same)
        yield "hardest_pairs", plots.plot_hardest_pairs(self.pixels, similarity, self.is_same)

    def pixels(self, index: int, size: int) -> ImageArray:
        """Image `index`, uint8 RGB [size, size, 3]. InputError names one that cannot be read."""
        try:
            return images.decode(self.images[index], size)
        except InputError as error:
            raise InputError(f"{self.path}: image {index}: {error}") from None

    def encoded_image(self, index: int) -> EncodedImage:
        """Image `index` as it is stored."""
        return self.images[index]

    def image_location(self, index: int) -> str:
        """Where image `index` is, for people."""
        return f"pair {index // 2}, image {index % 2}"

    def exclude(self, excluded: Collection[int]) -> tuple[Self, list[int]]:
        """The set without the pairs of these images; and which of its images it has."""
        stay = [
            it for it in range(len(self.is_same)) if 2 * it not in excluded and 2 * it + 1 not in excluded
        ]
        kept = [image for pair in stay for image in (2 * pair, 2 * pair + 1)]
        left = replace(self, images=[self.images[it] for it in kept], is_same=self.is_same[stay])
        return left, kept


def _format_scores(scores: Scores) -> str:
    rates = [
        f"TAR@FAR {name.removeprefix('tar@far=')} {metrics.format_with_interval(scores, name)}"
        for name in metrics.scores_with_interval(scores)
        if name.startswith("tar@")
    ]
    accuracy, area = (metrics.format_with_interval(scores, name) for name in ("accuracy", "auc"))
    return ", ".join([f"accuracy {accuracy}", f"AUC {area}", *rates])


def load_pairs(path: Path) -> VerificationPairs:
    """The set in a .bin: a pickle of (images, issame), of python 2 or 3, images as bytes or as uint8 arrays.

    InputError where the file holds anything else, or fewer than 10 pairs, one for each fold; a pickle that
    names a class or function beyond numpy's arrays is refused, and nothing of it runs.
    """
    try:
        content = path.read_bytes()
        loaded = safe_pickle.safe_load(content)
    except safe_pickle.UnsafePickleError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise InputError(f"{path}: not a pickle of (images, issame): {format_error(error)[:100]}") from None
    if not (isinstance(loaded, tuple | list) and len(loaded) == 2):
        raise InputError(f"{path}: a {type(loaded).__name__}, wanted (images, issame)")
    faces, same = loaded
    lengths = [_list_length(part) for part in loaded]
    most = len(content)  # an array of nothing may be of any length
    if lengths[0] != 2 * lengths[1] or not 10 <= lengths[1] <= most:
        found = " and ".join("no list" if length < 0 else str(length) for length in lengths)
        raise InputError(
            f"{path}: {found} images and issame; wanted two images a pair, and 10 pairs at least"
        )
    encoded = [_parse_image(path, index, image) for index, image in enumerate(faces)]
    return VerificationPairs(
        path, encoded, np.array([_parse_flag(path, index, flag) for index, flag in enumerate(same)], bool)
    )


def _list_length(part: Any) -> int:
    """-1 where it is no list."""
    return len(part) if isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.ndim) else -1


def _parse_flag(path: Path, index: int, flag: Any) -> bool:
    if isinstance(flag, bool | np.bool_ | int | np.integer) and flag in (0, 1):
        return bool(flag)
    raise InputError(f"{path}: issame {index}: expected true or false, got {flag!r:.60}")


def _parse_image(path: Path, index: int, image: Any) -> EncodedImage:
    if isinstance(image, bytes):
        return image
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim
        and image.size == max(image.shape)
    ):
        return image.reshape(-1)  # [n, 1] is what OpenCV's imencode returned for long
    raise InputError(f"{path}: image {index} is a {type(image).__name__}, wanted bytes or a uint8 array")
