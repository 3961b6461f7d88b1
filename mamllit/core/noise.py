"""Random numbers that belong to an episode: the same for it on one process or many, vectorised or not, compiled or not.

A method that draws (a mask, a sampled model) may draw differently in every task, but a task must get the same numbers however
the meta-batch is spread over ranks and chunks. A generator with a state cannot do that. Here a number is a function of the
support set itself, whose content is a function of (seed, split, episode): its bits are hashed to a key, and the key and a
counter to a number. No argument, no state, and drawing again (in the next inner step of the same task) gives the same numbers.

The price: an episode that comes back, from a finite list of fixed tasks, brings its numbers along; and two episodes with the
same support share them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mamllit.core.episode import Examples

LOW = 0xFFFFFFFF  # 32-bit words in int64 tensors; factors below 2**31, so that no product overflows


def episode_key(support: Examples) -> Tensor:
    """The key of an episode: a scalar int64 in [0, 2**32), from the bits of its support inputs and targets."""
    return _mixed(_digest(support.x) ^ _mixed(_digest(support.y)))


def key_of(values: Tensor) -> Tensor:
    """The key of any tensor of numbers, a scalar int64 in [0, 2**32), from its bits, for what sees no episode."""
    return _mixed(_digest(values))


def uniform(key: Tensor, stream: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Numbers in (0, 1), of `shape`, with the device of `like`; float32, which a narrower dtype would round to 0 and 1.

    Args:
        key: from `episode_key`.
        stream: draws with different streams (layers, models) are independent of each other.
    """
    counter = torch.arange(torch.Size(shape).numel(), device=like.device)
    bits = _mixed(_mixed(_mixed(counter) ^ key) + _mixed(torch.full_like(counter, stream + 1)))
    return ((bits >> 9).float() + 0.5).mul(2.0**-23).reshape(tuple(shape))


def normal(key: Tensor, stream: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal numbers, with the dtype and device of `like`; the other arguments as in `uniform`."""
    return torch.special.ndtri(uniform(key, stream, shape, like)).to(like.dtype)


def logistic(key: Tensor, stream: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Differences of two Gumbel numbers, with the dtype and device of `like`; the other arguments as in `uniform`."""
    return torch.logit(uniform(key, stream, shape, like)).to(like.dtype)


def _digest(values: Tensor) -> Tensor:
    """A 32-bit sum over the hashed bits of all values and their places."""
    bits = values.detach().to(torch.float32).contiguous().view(torch.int32) if values.is_floating_point() else values
    words = bits.reshape(-1).long() & LOW
    places = torch.arange(words.shape[0], device=words.device)
    return _mixed(words ^ _mixed(places + 1)).sum() & LOW


def _mixed(word: Tensor) -> Tensor:
    """A 32-bit integer hash (two rounds of xor-shift and multiply, the constants of hash-prospector's lowbias32 search)."""
    word = word & LOW
    word = ((word ^ (word >> 16)) * 0x21F0AAAD) & LOW
    word = ((word ^ (word >> 15)) * 0x735A2D97) & LOW
    return word ^ (word >> 15)
