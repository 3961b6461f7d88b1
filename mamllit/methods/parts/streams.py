"""What the methods share that learn from a stream: each example is answered before its label is shown, and then remembered."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from mamllit.core.episode import Episode, Examples
from mamllit.core.stream import Stream, earlier
from mamllit.methods.base import Method, Predictor


class StreamMethod(Method):
    """A method for streams; it says how a stream is answered.

    What an evaluation reports of a stream is the metric by presentation: at the 1st example of a class, the 2nd, and so on.
    An ordinary episode is the frozen reading: its support is presented, and each query example is answered by what is
    remembered then, without being remembered itself, so that the number compares with that of any other method.
    """

    counted: ClassVar[str] = "earlier examples of the class"

    @abstractmethod
    def answers(self, stream: Examples) -> Tensor:
        """The output [L, N] for each example of a stream, from those before it and their labels."""

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses of all L answers, the first of each class too; of an ordinary episode the query loss."""
        if not isinstance(episode, Stream):
            return super().meta_loss(episode)
        output = self.answers(episode.query)
        hit, seen = self.hits(output.detach(), episode.query), episode.presentations()
        logs = {self.objective.metric_name: hit.mean()}
        logs |= {f"{self.objective.metric_name}_seen_{k}": mean_where(hit, seen == k) for k in (0, 1, 4)}
        return self.objective.loss(output, episode.query.y) * len(output), logs

    def curve(self, episode: Episode, steps: int, *predictors: Predictor) -> tuple[Tensor, ...]:
        """Of a stream the metric where 0, 1, ..., `steps` examples of the class came before, [steps + 1]; less where the
        stream is too short for one of its classes to have so many."""
        if not isinstance(episode, Stream):
            return super().curve(episode, steps, *predictors)
        hit, seen = self.hits(self.answers(episode.query), episode.query), episode.presentations()
        most = -(-len(hit) // episode.ways)  # the most frequent class has at least so many
        by_presentation = torch.stack([mean_where(hit, seen == k) for k in range(min(steps + 1, most))])
        return (by_presentation,) * max(len(predictors), 1)

    def hits(self, output: Tensor, stream: Examples) -> Tensor:
        """The metric of each answer, [L]."""
        return torch.func.vmap(self.objective.metric)(output[:, None], stream.y[:, None])


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the `chosen` of `values` [L]; 0 where none is."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)


def in_rounds(support: Examples) -> Examples:
    """The support [n, ...] in the order of a stream: the first example of each class, then the second of each, and so on."""
    order = earlier(support.y, support.ways).argsort(stable=True)
    return Examples(support.x[order], support.y[order], support.ways)
