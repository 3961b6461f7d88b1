"""Streams: online tasks, in which each example is answered before its label is shown."""

import torch.nn.functional as F
from torch import Tensor

from mamllit.core.episode import Episode, Examples


class Stream(Episode):
    """An online task: an episode whose query is its support, L examples in the order in which they are presented.

    A model answers each example before its label is shown, and may remember it afterwards. Made by `Stream.of`.

    >>> import torch
    >>> from mamllit import Stream
    >>> stream = Stream.of(torch.rand(6, 1), torch.tensor([1, 1, 0, 2, 1, 0]), ways=3)
    >>> stream.presentations()
    tensor([0, 1, 0, 0, 2, 1])
    """

    @classmethod
    def of(cls, x: Tensor, y: Tensor, ways: int) -> "Stream":
        """The stream of inputs `x` [L, ...] and labels `y` [L], or of T streams with a leading T on both."""
        examples = Examples(x, y, ways)
        return cls(examples, examples)

    def presentations(self) -> Tensor:
        """How many examples of the same class came before each, [L]."""
        return earlier(self.query.y, self.ways)


def earlier(labels: Tensor, ways: int) -> Tensor:
    """How many of the labels [n] before each one are the same, [n]."""
    member = F.one_hot(labels, ways)
    return (member.cumsum(0) * member).sum(-1) - 1
