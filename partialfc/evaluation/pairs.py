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
from partialfc.data.images import Encoded, Pixels
from partialfc.errors import InputError
from partialfc.evaluation import metrics, safe_pickle
from partialfc.evaluation.sets import Evaluated, Scores, check_embeddings
from partialfc.runtime.exit_codes import one_line


@dataclass(frozen=True)
class Pairs:
    """A verification set of P pairs."""

    path: Path
    images: list[Encoded]  # [2 P]; 2 i and 2 i + 1 are pair i
    same: NDArray[np.bool_]  # [P] whether a pair shows one person

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

    def evaluate(self, embeddings: Tensor) -> Evaluated:
        """See EvaluationSet, and metrics.verify. Pictures: the ROC curve, and the pairs that are hardest to tell."""
        similarity = self.similarities(embeddings)
        scores = metrics.scores_of_pairs(similarity, self.same)
        if one_kind := metrics.one_kind(self.same):
            return Evaluated(scores, _in_words(scores), warning=f"{self.name}: {one_kind}")
        return Evaluated(scores, _in_words(scores), self._pictures(similarity))

    def score_by_grid(self, embeddings: Tensor) -> Scores:
        """insightface_accuracy and insightface_accuracy_std: see metrics.grid_accuracy. embeddings: as of `evaluate`."""
        if metrics.one_kind(self.same):
            return dict.fromkeys(("insightface_accuracy", "insightface_accuracy_std"), math.nan)
        unit = normalize(embeddings.double()).cpu().numpy()
        distance = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
        accuracy, deviation = metrics.grid_accuracy(distance, self.same)
        return {"insightface_accuracy": accuracy, "insightface_accuracy_std": deviation}

    def _pictures(self, similarity: NDArray[np.float64]) -> Iterator[tuple[str, Pixels]]:
        from partialfc.evaluation import plots  # here: matplotlib takes a second

        yield "roc", plots.roc(self.name, similarity, self.same)
        yield "hardest_pairs", plots.hardest(self.pixels, similarity, self.same)

    def pixels(self, index: int, size: int) -> Pixels:
        """Image `index`, uint8 RGB [size, size, 3]. InputError names one that cannot be read."""
        try:
            return images.decode(self.images[index], size)
        except InputError as error:
            raise InputError(f"{self.path}: image {index}: {error}") from None

    def encoded(self, index: int) -> Encoded:
        """Image `index` as it is stored."""
        return self.images[index]

    def place(self, index: int) -> str:
        """Where image `index` is, for people."""
        return f"pair {index // 2}, image {index % 2}"

    def without(self, dropped: Collection[int]) -> tuple[Self, list[int]]:
        """The set without the pairs of these images; and which of its images it has."""
        stay = [it for it in range(len(self.same)) if 2 * it not in dropped and 2 * it + 1 not in dropped]
        kept = [image for pair in stay for image in (2 * pair, 2 * pair + 1)]
        left = replace(self, images=[self.images[it] for it in kept], same=self.same[stay])
        return left, kept


def _in_words(scores: Scores) -> str:
    rates = [
        f"TAR@FAR {name.removeprefix('tar@far=')} {metrics.in_words(scores, name)}"
        for name in metrics.headings(scores)
        if name.startswith("tar@")
    ]
    accuracy, area = (metrics.in_words(scores, name) for name in ("accuracy", "auc"))
    return ", ".join([f"accuracy {accuracy}", f"AUC {area}", *rates])


def load_pairs(path: Path) -> Pairs:
    """The set in a .bin: a pickle of (images, issame), of python 2 or 3, images as bytes or as uint8 arrays.

    InputError where the file holds anything else, or fewer than 10 pairs, one for each fold; a pickle that
    names a class or function beyond numpy's arrays is refused, and nothing of it runs.
    """
    try:
        content = path.read_bytes()
        loaded = safe_pickle.load(content)
    except safe_pickle.Refused as error:
        raise InputError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise InputError(f"{path}: not a pickle of (images, issame): {one_line(error)[:100]}") from None
    if not (isinstance(loaded, tuple | list) and len(loaded) == 2):
        raise InputError(f"{path}: a {type(loaded).__name__}, wanted (images, issame)")
    faces, same = loaded
    lengths = [_length(part) for part in loaded]
    most = len(content)  # an array of nothing may be of any length
    if lengths[0] != 2 * lengths[1] or not 10 <= lengths[1] <= most:
        found = " and ".join("no list" if length < 0 else str(length) for length in lengths)
        raise InputError(
            f"{path}: {found} images and issame; wanted two images a pair, and 10 pairs at least"
        )
    encoded = [_encoded(path, index, image) for index, image in enumerate(faces)]
    return Pairs(path, encoded, np.array([_flag(path, index, flag) for index, flag in enumerate(same)], bool))


def _length(part: Any) -> int:
    """-1 where it is no list."""
    return len(part) if isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.ndim) else -1


def _flag(path: Path, index: int, flag: Any) -> bool:
    if isinstance(flag, bool | np.bool_ | int | np.integer) and flag in (0, 1):
        return bool(flag)
    raise InputError(f"{path}: issame {index}: expected true or false, got {flag!r:.60}")


def _encoded(path: Path, index: int, image: Any) -> Encoded:
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
