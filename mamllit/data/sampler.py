"""Random episodes as pure functions of (seed, split, number), drawn a whole meta-batch at a time.

A counter-based generator (numpy's Philox, Salmon et al. 2011) gives episode i its own block of random numbers. So the same
episode comes out on any rank, with any number of workers, and after a resume, and a contiguous run of episodes is one call.
"""

from typing import NamedTuple

import numpy as np

SPLITS = ("train", "val", "test")
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
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    if seed < 0 or first < 0:
        raise ValueError(f"seed is {seed} and the first episode {first}; both must be >= 0")
    blocks = -(-width // 4)  # Philox makes four 64-bit numbers per count of its counter
    key = np.array([seed, SPLITS.index(split) + len(SPLITS) * stream], dtype=np.uint64)
    counter = np.array([first * blocks, 0, 0, 0], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(count * blocks * 4)
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
        raise ValueError(f"an episode of {ways} ways was asked for, but the {split} split has {classes} classes")
    if int(sizes.min()) < per_class:
        raise ValueError(
            f"an episode needs {per_class} images of each class (shots + queries), but a class of the {split} split has "
            f"{int(sizes.min())}; ask for fewer shots or queries"
        )
    numbers = uniform(seed, split, first, count, classes + ways * (largest + 1))
    keys, rest = numbers[:, :classes], numbers[:, classes:].reshape(count, ways, largest + 1)
    chosen = _smallest(keys, ways)
    image_keys = rest[:, :, :largest]
    if int(sizes.min()) < largest:
        image_keys = np.where(np.arange(largest) < sizes[chosen][..., None], image_keys, np.inf)
    image = offsets[:-1][chosen][..., None] + _smallest(image_keys, per_class)
    turns = (rest[:, :, largest] * 4).astype(np.int64) if rotate else np.zeros_like(chosen)
    return ImageEpisodes(np.arange(first, first + count), image, turns)


def _smallest(keys: Array, n: int) -> Array:
    """Positions of the `n` smallest of the last axis, smallest first: a random ordered choice where keys are uniform."""
    if n < keys.shape[-1]:
        part = np.argpartition(keys, n - 1, axis=-1)[..., :n]
    else:
        part = np.broadcast_to(np.arange(n), keys.shape)
    order = np.argsort(np.take_along_axis(keys, part, -1), axis=-1)
    return np.take_along_axis(part, order, -1)
