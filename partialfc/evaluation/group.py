"""Several evaluation sets that belong together, as the four of RFW: scored each, and by how much they differ."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from partialfc.data.images import Pixels
from partialfc.evaluation.sets import EvaluationSet, Scores, headline


@dataclass(frozen=True)
class Group:
    """An evaluation set of others, whose headline scores are one and the same."""

    name: str
    sets: Sequence[EvaluationSet]

    def __len__(self) -> int:
        return sum(len(it) for it in self.sets)

    def pixels(self, index: int, size: int) -> Pixels:
        """See EvaluationSet."""
        for one in self.sets:
            if index < len(one):
                return one.pixels(index, size)
            index -= len(one)
        raise IndexError(index)

    def score(self, embeddings: Tensor) -> Scores:
        """See EvaluationSet. The mean of the sets' headline scores; NAME_deviation, their standard deviation over the sets
        (divided by n - 1), and SET_NAME, each one's.
        """
        each = {one.name: headline(one.score(part)) for one, part in self._parts(embeddings)}
        name = next(iter(each.values()))[0]
        values = [value for _, value in each.values()]
        summary = {name: statistics.fmean(values), f"{name}_deviation": statistics.stdev(values)}
        return summary | {f"{one}_{name}": value for one, (_, value) in each.items()}

    def in_words(self, scores: Scores) -> str:
        """See EvaluationSet."""
        name, mean = headline(scores)
        each = ", ".join(f"{one.name} {scores[f'{one.name}_{name}']:.2%}" for one in self.sets)
        return f"{name} {mean:.2%}, deviation {100 * scores[f'{name}_deviation']:.2f} points: {each}"

    def pictures(self, embeddings: Tensor) -> Iterator[tuple[str, Pixels]]:
        """See EvaluationSet: those of each set."""
        for one, part in self._parts(embeddings):
            for name, picture in one.pictures(part):
                yield f"{name}_of_{one.name}", picture

    def _parts(self, embeddings: Tensor) -> Iterator[tuple[EvaluationSet, Tensor]]:
        return zip(self.sets, embeddings.split([len(it) for it in self.sets]), strict=True)
