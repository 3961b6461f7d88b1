"""Episodes, and the legend of shapes that every other file uses.

T tasks (episodes) in a meta-batch, N ways (classes), K shots (support examples per class), Q queries per class,
C x H x W an image. A regression episode has N = 1. An episode knows nothing of how it was made.
"""

from typing import NamedTuple

from torch import Tensor


class Examples(NamedTuple):
    """Inputs and targets, `x` [n, ...] and `y` [n] (class labels 0..N-1) or [n, d] (regression)."""

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task: `support` (N*K examples) to adapt on, `query` (N*Q examples) to judge the adapted model.

    Examples are ordered by class. A batch of episodes is the same tuple with a leading T on each tensor.
    """

    support: Examples
    query: Examples


class EpisodeBatch(NamedTuple):
    """T episodes and their `number` [T] (int64) in the stream they were drawn from."""

    number: Tensor
    episodes: Episode
