"""Random episodes as pure functions of (seed, split, number), drawn a whole meta-batch at a time.

Episode i has its own block of the random numbers of `mamllit.core.philox`, and a contiguous run of episodes is one call.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from mamllit.core.philox import check, random_words

SORTED = 2048  # classes of a split, and images of a class, up to which a choice sorts a number for each of them
CLASSES, TURNS, IMAGES = 1, 2, 3  # streams of random numbers of larger pools; the image at place p takes IMAGES + p
Array = np.ndarray


class ImageEpisodes(NamedTuple):
    """What `count` image episodes are made of; the images themselves are gathered later, on the device.

    `number` [T] of each episode in its stream, `image` [T, N, P] positions in the pool (P images a class, support first),
    `turns` [T, N] quarter turns of each class.
    """

    number: Array
    image: Array
    turns: Array


def uniform(seed: int, split: str, first: int, count: int, width: int, stream: int = 0) -> Array:
    """Uniform numbers in [0, 1), [count, width], float64: row r depends on (seed, split, stream, first + r, width) alone.

    Raises:
        ValueError: for an unknown split or a negative seed or episode number.
    """
    check(seed, split)
    if first < 0:
        raise ValueError(f"the first episode is {first}; it must be >= 0")
    blocks = -(-width // 4)  # four words per step of the counter
    raw = random_words(seed, split, (first * blocks,), count * blocks * 4, stream)
    return (raw >> np.uint64(11)).reshape(count, blocks * 4)[:, :width] * 2.0**-53


def draw_image_episodes(
    offsets: Array, ways: int, per_class: int, *, seed: int, split: str, first: int, count: int, rotate: bool
) -> ImageEpisodes:
    """Draw episodes `first` to `first + count`: `ways` classes without replacement, `per_class` images of each likewise.

    Args:
        offsets: [classes + 1]; class c owns the images offsets[c] to offsets[c + 1].
        rotate: give each class of each episode a random number of quarter turns, else none.

    Raises:
        ValueError: if there are fewer than `ways` classes, or a class has fewer than `per_class` images.
    """
    sizes = np.diff(offsets)
    classes, largest = len(sizes), int(sizes.max(initial=0))
    if classes < ways:
        raise ValueError(f"an episode needs {ways} ways, but the {split} split has only {classes} classes")
    if int(sizes.min()) < per_class:
        raise ValueError(
            f"an episode needs {per_class} images of each class (shots + queries), but a class of the {split} split has "
            f"{int(sizes.min())}; use fewer shots or queries"
        )
    draw = _draw_sorted if max(classes, largest) <= SORTED else _draw_places
    chosen, place, turn = draw(sizes, ways, per_class, partial(uniform, seed, split, first, count))
    turns = (turn * 4).astype(np.int64) if rotate else np.zeros_like(chosen)
    return ImageEpisodes(np.arange(first, first + count), offsets[:-1][chosen][..., None] + place, turns)


def _draw_sorted(sizes: Array, ways: int, per_class: int, numbers: Callable[..., Array]) -> tuple[Array, Array, Array]:
    """Classes [T, N], places in them [T, N, P] and numbers for the turns [T, N]: a number for each class and image, sorted.

    The published results were measured on these episodes, so this is kept beside `_draw_places`.
    """
    classes, largest = len(sizes), int(sizes.max())
    drawn = numbers(classes + ways * (largest + 1))
    keys, rest = drawn[:, :classes], drawn[:, classes:].reshape(len(drawn), ways, largest + 1)
    chosen = _smallest(keys, ways)
    image_keys = rest[:, :, :largest]
    if int(sizes.min()) < largest:
        image_keys = np.where(np.arange(largest) < sizes[chosen][..., None], image_keys, np.inf)
    return chosen, _smallest(image_keys, per_class), rest[:, :, largest]


def _draw_places(sizes: Array, ways: int, per_class: int, numbers: Callable[..., Array]) -> tuple[Array, Array, Array]:
    """The same for pools of any size: time and memory depend on what is drawn, not on the size of the pool."""
    chosen = _without_replacement(numbers(ways, CLASSES), np.full(1, len(sizes)))
    # a stream for each place, so that the support is the same for any number of queries
    images = np.stack([numbers(ways, IMAGES + place) for place in range(per_class)], axis=-1)
    return chosen, _without_replacement(images, sizes[chosen]), numbers(ways, TURNS)


def _without_replacement(numbers: Array, sizes: Array) -> Array:
    """P different places below `sizes` [...], for uniform `numbers` [..., P]: each ordered choice is as likely as any other.

    Fisher and Yates' shuffle (Knuth 1969, algorithm P), ended after P places, which keeps only the places that were swapped.
    """
    places = np.arange(numbers.shape[-1])
    swapped = places + (numbers * (sizes[..., None] - places)).astype(np.int64)  # place i is swapped with swapped[i] >= i
    drawn, left = swapped.copy(), np.broadcast_to(places, swapped.shape).copy()  # what came to place i, and what lay there

    def lying_at(place: Array, i: int) -> Array:
        earlier = swapped[..., :i] == place[..., None]
        last = i - 1 - earlier[..., ::-1].argmax(-1)
        return np.where(earlier.any(-1), np.take_along_axis(left, last[..., None], -1)[..., 0], place)

    for i in range(1, len(places)):
        drawn[..., i], left[..., i] = lying_at(swapped[..., i], i), lying_at(left[..., i], i)
    return drawn


def _smallest(keys: Array, n: int) -> Array:
    """Positions of the `n` smallest of the last axis, smallest first: a random ordered choice where keys are uniform."""
    if n < keys.shape[-1]:
        part = np.argpartition(keys, n - 1, axis=-1)[..., :n]
    else:
        part = np.broadcast_to(np.arange(n), keys.shape)
    order = np.argsort(np.take_along_axis(keys, part, -1), axis=-1)
    return np.take_along_axis(part, order, -1)
