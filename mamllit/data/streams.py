"""Streams of labelled images, for methods with a memory: each image is classified before its label is shown.

Stream i of a split is a pure function of (seed, split, i), as an episode is. A drawing is not repeated before all others of
its class have been shown.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.core.philox import SPLITS
from mamllit.core.stream import Stream
from mamllit.data.episodic import EvaluationSet, Protocol, TestEpisodes
from mamllit.data.images import ImageDataModule, ImageDraw, rotate
from mamllit.data.pool import ClassPool
from mamllit.data.preparation import LARGE, Preparation, omniglot_streams
from mamllit.data.sampler import Array, uniform
from mamllit.data.sources.omniglot import SIDE, load_omniglot

Order = Literal["free", "shuffled", "rounds"]
STREAMS = 600  # of a test
STREAM = 2**20  # random numbers of streams, beside those of episodes


class StreamDraw(NamedTuple):
    """For T streams of L images: `number` [T], `image` [T, L] pool positions, `label` [T, L], `turns` [T, L] quarter turns,
    `jitter` [T, L, 3] (angle, and shift in x and y, each in [-1, 1)), `split` (scalar)."""

    number: Tensor
    image: Tensor
    label: Tensor
    turns: Tensor
    jitter: Tensor
    split: Tensor


class PresentationDraw(NamedTuple):
    """The images at one `place` (scalar) of T streams: what is drawn of them, with one image each, L = 1."""

    streams: StreamDraw
    place: Tensor


class Presentation(NamedTuple):
    """What T streams show at the same time: the images `x` [T, C, H, W] at one `place` of each, and their labels `y` [T];
    `number` [T] of the streams."""

    number: Tensor
    place: int
    x: Tensor
    y: Tensor


def draw_streams(
    offsets: Array, ways: int, length: int, order: Order, *, seed: int, split: str, first: int, count: int
) -> StreamDraw:
    """The streams `first` to `first + count`, of `ways` classes without replacement; `offsets` [classes + 1] as in `ClassPool`.

    Raises:
        ValueError: if there are fewer than `ways` classes.
    """
    sizes = np.diff(offsets)
    if len(sizes) < ways:
        raise ValueError(f"a stream needs {ways} classes, but the {split} split has only {len(sizes)}")

    def numbers(stream: int, *shape: int) -> Array:
        return uniform(seed, split, first, count, math.prod(shape), STREAM + stream).reshape(count, *shape)

    chosen = numbers(0, len(sizes)).argsort(-1)[:, :ways]  # the label of a class is its place here
    rounds = -(-length // ways)
    if order == "free":
        label = (numbers(1, length) * ways).astype(np.int64)
    elif order == "shuffled":
        label = (numbers(1, length).argsort(-1)) % ways
    else:
        label = numbers(1, rounds, ways).argsort(-1).reshape(count, -1)[:, :length]
    seen = ((label[..., None] == np.arange(ways)).cumsum(1) - 1).astype(np.int64)  # [T, L, N]
    seen = np.take_along_axis(seen, label[..., None], -1)[..., 0]
    keys = numbers(2, ways, int(sizes.max()))
    keys = np.where(np.arange(keys.shape[-1]) < sizes[chosen][..., None], keys, np.inf)
    places, rows = keys.argsort(-1), np.arange(count)[:, None]
    which = chosen[rows, label]
    place = places[rows, label, seen % sizes[which]]
    turns = (numbers(3, ways) * 4).astype(np.int64)[rows, label]
    jitter = (2 * numbers(4, length, 3) - 1).astype(np.float32)
    drawn = (np.arange(first, first + count), offsets[which] + place, label, turns, jitter, np.array(SPLITS.index(split)))
    return StreamDraw(*map(torch.from_numpy, drawn))


class OmniglotStreamDataModule(ImageDataModule):
    """Omniglot as streams: training and validation present L images of N classes one after another.

    A test has the set "stream" and, for comparison with other methods, ordinary episodes ("standard"), whose support is
    presented first and whose queries leave the memory unchanged.

    Args:
        root, split, rotate, download: see `OmniglotDataModule`.
        ways: N, classes of a stream.
        length: L, images of a stream.
        order: "free": the class of each image is random (Santoro et al. 2016); "shuffled": the same number of each class, in
            random order; "rounds": each class once in random order, then each once more, and so on (Kaiser et al. 2017).
        image_size: H = W of the images.
        jitter: turn each image of a stream by up to pi / 16 and shift it by up to 10 of its 105 pixels in x and y, then
            downscale it (Santoro et al. 2016, in every split). This is done on images of 35 x 35; the paper does not say how.
        resize: of images without jitter, see `OmniglotDataModule`.
        presentations: a training step gets one presentation of all its streams, a `Presentation`, not whole streams (for
            `mamllit.systems.MemoryStream`); L steps make one round of streams.
        meta_batch_size: streams per meta-update over all ranks.
        test_streams: streams of the set "stream" in a test.
        test_shots: K of the ordinary episodes of a test.
        protocols, standard_queries, test_episodes: of these episodes; no protocols: no such episodes.
        seed, eval_seed, val_episodes, eval_batch_size, num_workers: see `EpisodicDataModule`.

    Raises:
        ValueError: for a number out of bounds or an unknown order; else as `OmniglotDataModule`.

    >>> from mamllit import OmniglotStreamDataModule
    >>> data = OmniglotStreamDataModule("data/omniglot", ways=5, length=50)
    >>> [evaluation.name for evaluation in data.evaluation_sets("test")]
    ['stream', 'standard']
    """

    invert = None  # ink is 1

    def __init__(
        self,
        root: str | Path,
        ways: int = 5,
        length: int = 50,
        order: Order = "free",
        image_size: int = 28,
        jitter: bool = False,
        meta_batch_size: int = 16,
        split: Literal["vinyals", "maml", "alphabets"] = "vinyals",
        resize: Literal["nearest", "antialias"] = "nearest",
        rotate: bool = True,
        download: bool = False,
        standard_queries: int = 15,
        seed: int | None = None,
        eval_seed: int = 0,
        protocols: Sequence[Protocol] = ("standard",),
        val_episodes: int = 200,
        test_streams: int = STREAMS,
        test_episodes: TestEpisodes = None,
        eval_batch_size: int = 50,
        num_workers: int = 0,
        test_shots: Sequence[int] = (1,),
        presentations: bool = False,
    ) -> None:
        if length < ways:
            raise ValueError(f"length is {length} and ways is {ways}; a stream shows each class at least once: length >= ways")
        if order not in get_args(Order):
            raise ValueError(f"order is {order!r}; it must be one of {list(get_args(Order))}")
        if test_streams < 2:
            raise ValueError(f"test_streams is {test_streams}; it must be >= 2")
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}; it must be >= 1")
        super().__init__(
            ways=ways, shots=1, queries=length // ways, meta_batch_size=meta_batch_size, rotate=rotate,
            standard_queries=standard_queries, seed=seed, eval_seed=eval_seed, protocols=protocols,
            val_episodes=val_episodes, test_episodes=test_episodes, eval_batch_size=eval_batch_size, num_workers=num_workers,
            test_shots=test_shots,
        )  # fmt: skip
        self.root, self.split, self.resize, self.download = root, split, resize, download
        self.length, self.order, self.image_size, self.jitter = length, order, image_size, jitter
        self.test_streams, self.presentations = test_streams, presentations
        self.shots = 0  # of a training or validation stream: nothing is shown beforehand

    # ---- the images ----------------------------------------------------------------------------------------------------

    def stored(self) -> Preparation:
        return omniglot_streams(self.image_size, self.jitter, self.resize)

    def prepare_data(self) -> None:
        self.pools = self._load(self.download)

    def load(self) -> dict[str, ClassPool]:
        return self._load(False)

    def _load(self, download: bool) -> dict[str, ClassPool]:
        size, resize = (LARGE, "antialias") if self.jitter else (self.image_size, self.resize)
        return load_omniglot(self.root, split=self.split, image_size=size, resize=resize, download=download)

    def _seen(self, images: Tensor, turns: Tensor, jitter: Tensor) -> Tensor:
        """Bytes [T, L, 1, S, S] as the network sees them: turned by quarters [T, L], jittered [T, L, 3], in [0, 1]."""
        if not self.jitter:
            images = rotate(images[:, :, None], turns)[:, :, 0] if self.rotate else images
            return images.float().div_(255)
        angle = jitter[..., 0] * (math.pi / 16) + turns * (math.pi / 2)
        return moved(
            images.flatten(0, 1).float() / 255, angle.flatten(), jitter[..., 1:].flatten(0, 1), self.image_size
        ).unflatten(0, images.shape[:2])

    # ---- what is drawn and built ---------------------------------------------------------------------------------------

    def evaluation_sets(self, split: Literal["val", "test"]) -> list[EvaluationSet]:
        per_class = self.length // self.ways
        if split == "val":
            return [EvaluationSet("val", "stream", "val", 0, per_class, self.val_episodes, self.ways, self.length)]
        label = "stream" if self.test_streams == STREAMS else f"stream[{self.test_streams}]"
        stream = EvaluationSet(label, label, "test", 0, per_class, self.test_streams, self.ways, self.length)
        return [stream, *super().evaluation_sets("test")]

    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> StreamDraw | ImageDraw:  # type: ignore[override]
        if shots:
            return super().draw(seed, split, shots, queries, first, count)
        return draw_streams(
            self.pools[split].offsets, self.ways, self.length, self.order, seed=seed, split=split, first=first, count=count
        )

    def train_dataloader(self) -> DataLoader:
        if not self.presentations:
            return super().train_dataloader()
        rank, world = self._world()
        share = self.meta_batch_size // world
        known: dict[int, StreamDraw] = {}

        def draw(step: int) -> PresentationDraw:
            streams, place = divmod(step, self.length)
            if streams not in known:
                known.clear()
                first = streams * self.meta_batch_size + rank * share
                known[streams] = self.draw(self.seed, "train", 0, self.queries, first, share)  # type: ignore[assignment]
            number, *columns, split = known[streams]
            image, label, turns, jitter = (column[:, place : place + 1] for column in columns)
            return PresentationDraw(StreamDraw(number, image, label, turns, jitter, split), torch.tensor(place))

        return self._training_loader(draw)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> EpisodeBatch | Presentation:  # type: ignore[override]
        if not isinstance(batch, PresentationDraw):
            return self.build(batch)
        drawn = batch.streams
        pool = self._images(SPLITS[int(drawn.split)], drawn.image.device)
        x = self._seen(pool[drawn.image], drawn.turns, drawn.jitter)
        return Presentation(drawn.number, int(batch.place), x[:, 0], drawn.label[:, 0])

    def build(self, drawn: StreamDraw | ImageDraw) -> EpisodeBatch:  # type: ignore[override]
        pool = self._images(SPLITS[int(drawn.split)], drawn.image.device)
        if isinstance(drawn, StreamDraw):
            x = self._seen(pool[drawn.image], drawn.turns, drawn.jitter)
            return EpisodeBatch(drawn.number, Stream.of(x, drawn.label, self.ways))
        if not self.jitter:
            return super().build(drawn)
        tasks, ways, per_class = drawn.image.shape
        turns = drawn.turns[..., None].expand(-1, -1, per_class).flatten(1)
        still = turns.new_zeros((*turns.shape, 3), dtype=torch.float32)
        x = self._seen(pool[drawn.image.flatten(1)], turns, still).unflatten(1, (ways, per_class))
        y = torch.arange(ways, device=x.device)[:, None].expand(tasks, ways, per_class)
        shots = int(drawn.shots)

        def part(rows: slice) -> Examples:
            return Examples(x[:, :, rows].flatten(1, 2), y[:, :, rows].flatten(1, 2), ways)

        return EpisodeBatch(drawn.number, Episode(part(slice(shots)), part(slice(shots, None))))


def moved(images: Tensor, angle: Tensor, shift: Tensor, size: int) -> Tensor:
    """Images [n, C, S, S] turned counter-clockwise by `angle` [n], shifted, and reduced to `size`, in one interpolation.

    Args:
        shift: [n, 2] in x (to the right) and y (downwards), 1 for 10 of a drawing's 105 pixels; what comes in is paper.
    """
    cos, sin, (x, y) = angle.cos(), angle.sin(), (-2 * 10 / SIDE * shift).unbind(-1)
    # an affine map from places in the result to places in the image, both from -1 to 1
    back = torch.stack([torch.stack([cos, -sin, cos * x - sin * y], -1), torch.stack([sin, cos, sin * x + cos * y], -1)], 1)
    grid = F.affine_grid(back, [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
