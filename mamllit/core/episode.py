"""Episodes, and the legend of shapes that every other file uses.

T tasks (episodes) in a meta-batch, N ways (classes), K shots (support examples per class), Q queries per class,
C x H x W an image. A regression episode has N = 1. An episode knows nothing of how it was made.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Inputs `x` [n, ...] and targets `y`, [n] (class labels 0 to N - 1) or [n, d] (regression); N, the number of `ways`.

    A batch of T tasks is the same with a leading T on both tensors. `ways` is the same for all of them, and static: a number,
    no tensor (see `mamllit.core.tree`).

    Raises:
        ValueError: for labels of less than two classes.

    >>> import torch
    >>> from mamllit import Examples
    >>> support = Examples(torch.rand(10, 1, 28, 28), torch.arange(5).repeat_interleave(2), ways=5)
    >>> support.ways, support.per_class
    (5, 2)
    """

    x: Tensor
    y: Tensor
    ways: int = 1

    def __post_init__(self) -> None:
        if self.ways < 2 and not self.y.is_floating_point():
            raise ValueError(
                f"ways is {self.ways}, but the targets are labels ({self.y.dtype}); give the number of classes, "
                "Examples(x, y, ways), 2 or more. Regression targets are floating-point numbers"
            )

    @property
    def per_class(self) -> int:
        """Examples per class of one task: K of a support, Q of a query.

        Raises:
            ValueError: where the classes cannot all have equally many.
        """
        n = self.x.shape[0]
        if n % self.ways:
            raise ValueError(f"{n} examples cannot be split equally over {self.ways} ways; give every class the same number")
        return n // self.ways

    def task(self, i: int) -> "Examples":
        """Task `i` of a batch."""
        return replace(self, x=self.x[i], y=self.y[i])

    def joined(self, more: "Examples") -> "Examples":
        """The examples of one task and `more` of the same classes, one after another."""
        return Examples(torch.cat([self.x, more.x]), torch.cat([self.y, more.y]), self.ways)


class Episode(NamedTuple):
    """One task: `support` (N*K examples) to adapt on, `query` (N*Q examples) to judge the adapted model.

    Examples are ordered by class. A batch of episodes is the same tuple with a leading T on each tensor.

    >>> import torch
    >>> from mamllit import Episode, Examples
    >>> episode = Episode(Examples(torch.rand(5, 1), torch.rand(5, 1)), Examples(torch.rand(15, 1), torch.rand(15, 1)))
    >>> episode.ways, episode.shots, episode.queries
    (1, 5, 15)
    """

    support: Examples
    query: Examples

    @property
    def ways(self) -> int:
        """N."""
        return self.support.ways

    @property
    def shots(self) -> int:
        """K of one task."""
        return self.support.per_class

    @property
    def queries(self) -> int:
        """Q of one task."""
        return self.query.per_class

    def tasks(self) -> list["Episode"]:
        """The T episodes of a batch, one by one."""
        return [type(self)(self.support.task(i), self.query.task(i)) for i in range(len(self.support.x))]


class EpisodeBatch(NamedTuple):
    """T episodes and their `number` [T] (int64) in the stream they were drawn from."""

    number: Tensor
    episodes: Episode
