"""The noise of starts and actions: a pure function of (seed, split, task, stream), the same on any number of processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mamllit.core.philox import check, random_words


@dataclass(frozen=True)
class Noise:
    """The noise of the tasks with these `numbers` in the stream of tasks of a seed and split.

    Raises:
        ValueError: for an unknown split or a negative seed.

    >>> from mamllit.rl import Noise
    >>> Noise(seed=0, split="test", numbers=(3, 4)).normal(0, (20, 2)).shape
    torch.Size([2, 20, 2])
    """

    seed: int
    split: str
    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        check(self.seed, self.split)

    def normal(self, stream: int, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers [T, *shape], float32; different streams are independent."""
        count = math.prod(shape)
        if not count:
            return torch.zeros(len(self.numbers), *shape)
        words = np.empty((len(self.numbers), -(-count // 2)), dtype=np.uint64)
        for row, number in zip(words, self.numbers, strict=True):
            row[:] = random_words(self.seed, self.split, (0, stream, number), len(row))
        return standard_normal(words.view(np.uint32)[:, :count]).reshape(-1, *shape)


def standard_normal(words: np.ndarray) -> Tensor:
    """A standard normal number, float32, for each word of 32 random bits; finite for each."""
    bits = torch.from_numpy(words >> np.uint32(9)).to(torch.float32)  # 23 of them: with a half added 24, which float32 holds
    uniform = (bits + 0.5).mul_(2.0**-22).sub_(1.0)  # in (-1, 1), its ends never reached
    return torch.erfinv(uniform).mul_(math.sqrt(2))
