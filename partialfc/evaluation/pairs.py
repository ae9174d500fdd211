"""Verification sets in the .bin format of the field; nothing in a file is executed."""

import math
import pickle
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
from partialfc.input_files import describe_other_content, read_file

_PICKLE_START = (b"\x80", b"(")  # of protocol 2 and later, and of python 2's default


@dataclass(frozen=True)
class VerificationPairs:
    """Verification set of P pairs."""

    path: Path
    images: list[EncodedImage]  # `[2 P]`; 2 i and 2 i + 1 are pair i
    is_same: NDArray[np.bool_]  # `[P]`

    @property
    def name(self) -> str:
        """Name of the file, without .bin."""
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
        """Return the scores of metrics.verify. Figures: the ROC curve and the hardest pairs."""
        similarity = self.similarities(embeddings)
        scores = metrics.scores_of_pairs(similarity, self.is_same)
        if one_kind := metrics.one_kind(self.is_same):
            return SetEvaluation(scores, _format_scores(scores), warning=f"{self.name}: {one_kind}")
        return SetEvaluation(scores, _format_scores(scores), self._iter_figures(similarity))

    def score_insightface(self, embeddings: Tensor) -> Scores:
        """Return insightface_accuracy and insightface_accuracy_std, see metrics.insightface_accuracy."""
        if metrics.one_kind(self.is_same):
            return dict.fromkeys(("insightface_accuracy", "insightface_accuracy_std"), math.nan)
        unit = normalize(embeddings.double()).cpu().numpy()
        distance = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
        accuracy, deviation = metrics.insightface_accuracy(distance, self.is_same)
        return {"insightface_accuracy": accuracy, "insightface_accuracy_std": deviation}

    def _iter_figures(self, similarity: NDArray[np.float64]) -> Iterator[tuple[str, ImageArray]]:
        from partialfc.evaluation import plots  # imported late: matplotlib takes a second

        yield "roc", plots.plot_roc(self.name, similarity, self.is_same)
        yield "hardest_pairs", plots.plot_hardest_pairs(self.pixels, similarity, self.is_same)

    def pixels(self, index: int, size: int) -> ImageArray:
        """Return image `index`, uint8 RGB `[size, size, 3]`.

        Raises:
            InputError: If it cannot be read.
        """
        try:
            return images.decode(self.images[index], size)
        except InputError as error:
            raise InputError(f"{self.path}: image {index}: {error}") from None

    def encoded_image(self, index: int) -> EncodedImage:
        """Return the encoded image `index`."""
        return self.images[index]

    def image_location(self, index: int) -> str:
        """Return a human-readable location of image `index`."""
        return f"pair {index // 2}, image {index % 2}"

    def exclude(self, excluded: Collection[int]) -> tuple[Self, list[int]]:
        """Return the set without the pairs of these images, and the indices of its images."""
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
    """Load a .bin: a pickle of (images, issame), of python 2 or 3, with images as bytes or uint8 arrays.

    Nothing in the pickle is executed; one that refers to classes or functions other than numpy's arrays is
    refused.

    Returns:
        The verification set.

    Raises:
        OSError: If the file cannot be read.
        InputError: If the file contains anything else, or fewer than 10 pairs, one per fold.
    """
    content = read_file(path)
    loaded = _load_pickle(path, content)
    if not (isinstance(loaded, tuple | list) and len(loaded) == 2):
        raise InputError(f"{path}: the pickle of a {type(loaded).__name__}; expected (images, issame)")
    faces, same = loaded
    lengths = [_list_length(part) for part in loaded]
    most = len(content)  # an array without elements may have any length
    if lengths[0] != 2 * lengths[1] or not 10 <= lengths[1] <= most:
        found = " and ".join("no list" if length < 0 else str(length) for length in lengths)
        raise InputError(
            f"{path}: {found} images and issame; expected two images per pair, and at least 10 pairs"
        )
    encoded = [_parse_image(path, index, image) for index, image in enumerate(faces)]
    return VerificationPairs(
        path, encoded, np.array([_parse_flag(path, index, flag) for index, flag in enumerate(same)], bool)
    )


def _load_pickle(path: Path, content: bytes) -> Any:
    expected = "expected a verification set, the pickle of (images, issame)"
    if other := describe_other_content(content):
        raise InputError(f"{path}: {expected}, found {other}")
    try:
        return safe_pickle.safe_load(content)
    except safe_pickle.UnsafePickleError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception:  # a damaged pickle can raise any exception
        is_cut = content.startswith(_PICKLE_START) and not content.endswith(pickle.STOP)
        found = "an incomplete copy of one" if is_cut else "a damaged or different file"
        raise InputError(f"{path}: {expected}, found {found}") from None


def _list_length(part: Any) -> int:
    """Return the length of a list, -1 for anything else."""
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
        return image.reshape(-1)  # `[n, 1]` is what OpenCV's imencode used to return
    raise InputError(f"{path}: image {index} is a {type(image).__name__}, expected bytes or a uint8 array")
