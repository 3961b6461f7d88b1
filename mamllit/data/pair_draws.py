"""Pairs of drawings, one-shot trials within an alphabet and affine distortions, drawn and made as Koch et al. 2015 did.

For `mamllit.data.pairs`. Pair i and trial i are pure functions of (seed, split, i), as every episode is.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.data.pool import ClassPool
from mamllit.data.sampler import Array, uniform
from mamllit.data.sources.omniglot import SIDE

PAIRS, TRIALS = 2**21, 2**21 + 1  # random numbers of pairs and of trials, beside those of episodes
# Of an affine distortion: an angle in degrees, shear in x and y, scale in x and y, shift in x and y in pixels of 105
LOW, HIGH = np.array([-10, -0.3, -0.3, 0.8, 0.8, -2, -2]), np.array([10, 0.3, 0.3, 1.2, 1.2, 2, 2])
NONE = np.array([0, 0, 0, 1, 1, 0, 0])


class PairDraw(NamedTuple):
    """For T pairs: `number` [T], `image` [T, 2] in the pool, `same` [T] (bool), whether both are of one character, and `affine`
    [T, 2, 7] (angle in degrees, shear, scale and shift in x and y each)."""

    number: Tensor
    image: Tensor
    same: Tensor
    affine: Tensor


def alphabets(names: Sequence[str]) -> Array:
    """Where each alphabet begins among characters "Alphabet/characterNN", which are in order, and their number: [A + 1]."""
    sizes = [len(list(group)) for _, group in groupby(names, key=lambda name: name.split("/")[0])]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def draw_pairs(pool: ClassPool, *, seed: int, split: str, first: int, count: int) -> PairDraw:
    """The pairs `first` to `first + count`; even-numbered pairs show one character, odd ones two of one alphabet.

    Alphabets are equally likely, and so are the characters of one. A pair of one character has two drawings, by two people.
    Each component of a distortion is applied with probability 1/2, independently in the two images.
    """
    starts = alphabets(pool.names)
    u = uniform(seed, split, first, count, 5 + 2 * 2 * len(NONE), PAIRS)
    number = np.arange(first, first + count)
    same = number % 2 == 0
    alphabet = _below(u[:, 0], len(starts) - 1)
    size = np.diff(starts)[alphabet]
    one = _below(u[:, 1], size)
    other = np.where(same, one, _other(u[:, 2], one, size))
    chosen = starts[alphabet][:, None] + np.stack([one, other], 1)
    drawn = pool.counts[chosen]
    place = _below(u[:, 3], drawn[:, 0])
    beside = np.where(same, _other(u[:, 4], place, drawn[:, 1]), _below(u[:, 4], drawn[:, 1]))
    image = pool.offsets[chosen] + np.stack([place, beside], 1)
    chance, size_of = u[:, 5:].reshape(count, 2, 2, len(NONE)).transpose(2, 0, 1, 3)
    affine = np.where(chance < 0.5, LOW + size_of * (HIGH - LOW), NONE).astype(np.float32)
    return PairDraw(*map(torch.from_numpy, (number, image, same, affine)))


def draw_trials(
    pool: ClassPool, ways: int, per_class: int, *, seed: int, split: str, first: int, count: int
) -> tuple[Array, Array]:
    """The episodes `first` to `first + count` within an alphabet: their numbers, and positions in the pool [T, N, P].

    The alphabets take turns. In each episode, P people drew its N characters, one after another.

    Raises:
        ValueError: for an alphabet of fewer characters than `ways`, or fewer people than `per_class`.
    """
    starts, people = alphabets(pool.names), int(pool.counts.min())
    sizes = np.diff(starts)
    if int(sizes.min()) < ways:
        raise ValueError(
            f"ways is {ways}, but an alphabet of the {split} split has {int(sizes.min())} characters; use fewer ways"
        )
    if people < per_class:
        raise ValueError(
            f"an episode needs drawings by {per_class} people (shots + queries), but the {split} split has {people}; use "
            "fewer shots or queries"
        )
    number = np.arange(first, first + count)
    alphabet = number % len(sizes)
    keys = uniform(seed, split, first, count, int(sizes.max()) + people, TRIALS)
    of_character = np.where(np.arange(sizes.max()) < sizes[alphabet][:, None], keys[:, : sizes.max()], np.inf)
    chosen = starts[alphabet][:, None] + of_character.argsort(-1)[:, :ways]
    drawer = keys[:, sizes.max() :].argsort(-1)[:, None, :per_class]
    return number, pool.offsets[chosen][..., None] + drawer


def _below(u: Array, bound: Array | int) -> Array:
    """Numbers 0 to `bound` - 1 from numbers in [0, 1)."""
    return (u * bound).astype(np.int64)


def _other(u: Array, taken: Array, bound: Array) -> Array:
    """Numbers below `bound` that are not `taken`."""
    found = _below(u, bound - 1)
    return found + (found >= taken)


def distorted(images: Tensor, affine: Tensor) -> Tensor:
    """Images [n, C, S, S], float, scaled, sheared, turned counter-clockwise and shifted about their centre, on paper.

    Args:
        affine: [n, 7], see `PairDraw`.
    """
    angle, shear_x, shear_y, scale_x, scale_y, *shift = affine.unbind(-1)
    cos, sin, one = torch.deg2rad(angle).cos(), torch.deg2rad(angle).sin(), torch.ones_like(angle)

    def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return torch.stack([a, b, c, d], -1).unflatten(-1, (2, 2))

    turn, zero = matrix(cos, sin, -sin, cos), torch.zeros_like(angle)  # y points downwards
    there = turn @ matrix(one, shear_x, shear_y, one) @ matrix(scale_x, zero, zero, scale_y)
    back = torch.linalg.inv(there)  # from places in the result to places in the image, both from -1 to 1
    origin = -back @ (torch.stack(shift, -1) * 2 / SIDE)[..., None]
    grid = F.affine_grid(torch.cat([back, origin], -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
