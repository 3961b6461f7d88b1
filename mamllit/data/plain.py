"""Plain batches: labelled images of the meta-train classes, for training without episodes (pre-training).

Batch s is a pure function of (seed, s). The stream of images is one random permutation of all meta-train images after another
(an epoch each), cut into batches; an image's crop and flip depend on its place in the stream. So a resumed run, any number of
workers and any number of ranks see the same batches.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.core.episode import Examples
from mamllit.data.sampler import Array, uniform

PERMUTATION, AUGMENTATION = 1, 2  # streams of random numbers beside that of the episodes, which is 0


@dataclass(frozen=True)
class PlainBatches:
    """How a data module trains on plain batches instead of episodes.

    Args:
        batch_size: images per update over all ranks together.
        crop: pixels of border (zeros) around an image, out of which a window of its size is cut at random; 0 for none.
        flip: turn half of the images left to right.
        rotated_classes: each class turned by 0, 90, 180 and 270 degrees is four classes (Omniglot's 1,100 become 4,400).

    Raises:
        ValueError: for a batch of fewer than two images, which a norm cannot use, or a negative border.
    """

    batch_size: int
    crop: int = 0
    flip: bool = False
    rotated_classes: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; batch norm needs at least 2 images")
        if self.crop < 0:
            raise ValueError(f"crop is {self.crop}; the border must be >= 0 pixels (0: no crop)")


class PlainDraw(NamedTuple):
    """For B images: `number` [B] in the stream, `image` [B] in the pool, `label` [B], `turns` [B], `window` [B, 2] (row and
    column of the crop), `flip` [B] (bool)."""

    number: Tensor
    image: Tensor
    label: Tensor
    turns: Tensor
    window: Tensor
    flip: Tensor


class PlainBatch(NamedTuple):
    """B examples and their `number` [B] (int64) in the stream they were drawn from."""

    number: Tensor
    examples: Examples


def classes_of(offsets: Array, plain: PlainBatches) -> int:
    """How many classes the labels of plain batches tell apart."""
    return (len(offsets) - 1) * (4 if plain.rotated_classes else 1)


def draw_plain(offsets: Array, plain: PlainBatches, seed: int, first: int, count: int) -> PlainDraw:
    """The images `first` to `first + count` of the stream; `offsets` [classes + 1] as in `ClassPool`."""
    images, turned = int(offsets[-1]), 4 if plain.rotated_classes else 1
    number = np.arange(first, first + count)
    epoch, place = np.divmod(number, images * turned)
    entry = np.concatenate([_permutation(seed, int(e), images * turned)[place[epoch == e]] for e in np.unique(epoch)])
    image, turns = np.divmod(entry, turned)
    label = (np.searchsorted(offsets, image, side="right") - 1) * turned + turns
    chance = uniform(seed, "train", first, count, 3, stream=AUGMENTATION)
    window = (chance[:, :2] * (2 * plain.crop + 1)).astype(np.int64)
    flip = chance[:, 2] < (0.5 if plain.flip else 0.0)
    return PlainDraw(*map(torch.from_numpy, (number, image, label, turns, window, flip)))


@lru_cache(maxsize=2)  # a batch may take the end of one epoch and the beginning of the next
def _permutation(seed: int, epoch: int, length: int) -> Array:
    return np.argsort(uniform(seed, "train", epoch, 1, length, stream=PERMUTATION)[0], kind="stable")


def augment(images: Tensor, window: Tensor, flip: Tensor, crop: int) -> Tensor:
    """Images [B, C, S, S] cut out of a border of `crop` zeros at `window` [B, 2], and turned left to right where `flip` [B]."""
    if crop:
        side = images.shape[-1]
        windows = F.pad(images, (crop,) * 4).unfold(2, side, 1).unfold(3, side, 1)  # a view, [B, C, rows, columns, S, S]
        images = windows[torch.arange(len(images), device=images.device), :, window[:, 0], window[:, 1]]
    if bool(flip.any()):
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    return images
