"""Group of evaluation sets, such as the four of RFW: scored separately, with the spread of their scores."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from partialfc.data.images import ImageArray
from partialfc.evaluation.metrics import percent
from partialfc.evaluation.sets import EvaluationSet, SetEvaluation, primary_score


@dataclass(frozen=True)
class SetGroup:
    """Evaluation set that consists of sets with the same primary score."""

    name: str
    sets: Sequence[EvaluationSet]

    def __len__(self) -> int:
        return sum(len(it) for it in self.sets)

    def pixels(self, index: int, size: int) -> ImageArray:
        """Return image `index` of all sets, uint8 RGB `[size, size, 3]`."""
        for one in self.sets:
            if index < len(one):
                return one.pixels(index, size)
            index -= len(one)
        raise IndexError(index)

    def evaluate(self, embeddings: Tensor) -> SetEvaluation:
        """Return the mean of the primary scores, their standard deviation and each set's score.

        NAME_deviation is the standard deviation over the sets (divided by n - 1); SET_NAME are the single
        scores. The figures are those of each set.
        """
        parts = embeddings.split([len(it) for it in self.sets])
        found = {one.name: one.evaluate(part) for one, part in zip(self.sets, parts, strict=True)}
        each = {one: primary_score(it.scores) for one, it in found.items()}
        name = next(iter(each.values()))[0]
        values = {one: value for one, (_, value) in each.items()}
        mean = statistics.fmean(values.values())
        deviation = math.nan if math.isnan(mean) else statistics.stdev(values.values())
        return SetEvaluation(
            {name: mean, f"{name}_deviation": deviation}
            | {f"{one}_{name}": value for one, value in values.items()},
            f"{name} {percent(mean)}, std {'-' if math.isnan(deviation) else f'{100 * deviation:.2f} points'}: "
            + ", ".join(f"{one} {percent(value)}" for one, value in values.items()),
            ((f"{name}_of_{one}", picture) for one, it in found.items() for name, picture in it.figures),
            "; ".join(it.warning for it in found.values() if it.warning) or None,
        )
