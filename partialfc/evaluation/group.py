"""Several evaluation sets that belong together, as the four of RFW: scored each, and by how much they differ."""

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
    """An evaluation set of others, whose headline scores are one and the same."""

    name: str
    sets: Sequence[EvaluationSet]

    def __len__(self) -> int:
        return sum(len(it) for it in self.sets)

    def pixels(self, index: int, size: int) -> ImageArray:
        """See EvaluationSet."""
        for one in self.sets:
            if index < len(one):
                return one.pixels(index, size)
            index -= len(one)
        raise IndexError(index)

    def evaluate(self, embeddings: Tensor) -> SetEvaluation:
        """See EvaluationSet. The mean of the sets' headline scores; NAME_deviation, their standard deviation over the sets
        (divided by n - 1), and SET_NAME, each one's. The pictures of each set.
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
            f"{name} {percent(mean)}, deviation {'-' if math.isnan(deviation) else f'{100 * deviation:.2f} points'}: "
            + ", ".join(f"{one} {percent(value)}" for one, value in values.items()),
            ((f"{name}_of_{one}", picture) for one, it in found.items() for name, picture in it.figures),
            "; ".join(it.warning for it in found.values() if it.warning) or None,
        )
