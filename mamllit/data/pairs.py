"""Omniglot as Koch et al. 2015 used it: pairs of drawings to train on, and one-shot trials within an alphabet.

G. Koch, R. Zemel, R. Salakhutdinov: Siamese Neural Networks for One-shot Image Recognition, 2015, sections 4.1 to 4.3. Training
sees 30 alphabets by 12 people; validation and test have ten other alphabets each, by four other people each. A trial shows one
person's drawings of 20 characters of an alphabet, and asks which of them another person's drawing is.

A pair is an episode of two ways: one support image, of class 0, and one query image, of class 0 or 1. Pair i and trial i are
pure functions of (seed, split, i), as every episode is.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.core.philox import SPLITS
from mamllit.data.episodic import EvaluationSet
from mamllit.data.images import ImageDataModule, ImageDraw
from mamllit.data.pool import ClassPool
from mamllit.data.preparation import Preparation, omniglot_streams
from mamllit.data.sampler import Array, uniform
from mamllit.data.sources.omniglot import SIDE, load_omniglot

DRAWERS = {"train": slice(0, 12), "val": slice(12, 16), "test": slice(16, 20)}  # the people who drew, of 20
PAIRS, TRIALS = 2**21, 2**21 + 1  # random numbers of pairs and of trials, beside those of episodes
# Of an affine distortion: an angle in degrees, shear in x and y, scale in x and y, shift in x and y in pixels of 105
LOW, HIGH = np.array([-10, -0.3, -0.3, 0.8, 0.8, -2, -2]), np.array([10, 0.3, 0.3, 1.2, 1.2, 2, 2])
NONE = np.array([0, 0, 0, 1, 1, 0, 0])
WITHIN, ACROSS = "within_alphabet", "across_alphabets"


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
    """The pairs `first` to `first + count`; those of even number are of one character, the others of two of one alphabet.

    Alphabets are equally likely, and so are the characters of one. The drawings of a pair of one character are two, by two
    people. Each component of a distortion is there with chance 1/2, in the two images independently.
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
            f"ways is {ways}, but an alphabet of the {split} split has {int(sizes.min())} characters; ask for fewer"
        )
    if people < per_class:
        raise ValueError(
            f"an episode needs drawings by {per_class} people (shots + queries), but the {split} split has {people}; ask for "
            "fewer"
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


class OmniglotPairsDataModule(ImageDataModule):
    """Omniglot as pairs for training, and within-alphabet one-shot trials for validation and test.

    A test has two sets: "within_alphabet", Koch's protocol, by default his 400 trials (20 episodes of 20 queries, each of the
    ten alphabets twice), and "across_alphabets", episodes of as many characters of all ten alphabets. Validation, within
    alphabets, has his 320 trials. The paper says neither which ten of the evaluation alphabets are for the test nor who drew
    for what: here these are the last ten by name, and people 1 to 12, 13 to 16 and 17 to 20.

    Args:
        root, resize, download: see `OmniglotDataModule`.
        ways: N, characters of a trial.
        shots, queries: people who drew the support, and the query, of an episode of an evaluation.
        meta_batch_size: pairs per update over all ranks together.
        image_size: H = W of the images; a drawing has 105.
        affine: distort the two images of each pair (rotation, shear, scale and shift, each with chance 1/2).
        val_episodes, test_episodes: of validation, and of each set of a test.
        seed, eval_seed, eval_batch_size, num_workers: see `EpisodicDataModule`.

    Raises:
        ValueError: for a number out of bounds; at `setup`, for more ways than an alphabet has characters, or for more shots
            and queries than people. Else as `OmniglotDataModule`.

    >>> from mamllit import OmniglotPairsDataModule
    >>> data = OmniglotPairsDataModule("data/omniglot")
    >>> [evaluation.name for evaluation in data.evaluation_sets("test")]
    ['within_alphabet', 'across_alphabets']
    """

    invert = None  # ink is 1

    def __init__(
        self,
        root: str | Path,
        ways: int = 20,
        shots: int = 1,
        queries: int = 1,
        meta_batch_size: int = 128,
        image_size: int = SIDE,
        affine: bool = True,
        resize: Literal["nearest", "antialias"] = "nearest",
        download: bool = False,
        seed: int | None = None,
        eval_seed: int = 0,
        val_episodes: int = 16,
        test_episodes: int = 20,
        eval_batch_size: int = 5,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            ways=ways, shots=shots, queries=queries, meta_batch_size=meta_batch_size, seed=seed, eval_seed=eval_seed,
            protocols=(), val_episodes=val_episodes, test_episodes=test_episodes, eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )  # fmt: skip
        self.root, self.resize, self.download = root, resize, download
        self.image_size, self.affine, self.trials = image_size, affine, test_episodes

    # ---- the images ----------------------------------------------------------------------------------------------------

    def stored(self) -> Preparation:
        return omniglot_streams(self.image_size, False, self.resize)

    def prepare_data(self) -> None:
        self.pools = self._load(self.download)

    def load(self) -> dict[str, ClassPool]:
        return self._load(False)

    def _load(self, download: bool) -> dict[str, ClassPool]:
        pools = load_omniglot(self.root, split="alphabets", image_size=self.image_size, resize=self.resize, download=download)
        return {split: drawn_by(pools[split], people) for split, people in DRAWERS.items()}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        asked = {"fit": self.evaluation_sets("val"), "validate": self.evaluation_sets("val")}
        for evaluation in asked.get(stage, self.evaluation_sets("test")):
            self.draw_for(evaluation, 0, 1)

    # ---- what is drawn and built ---------------------------------------------------------------------------------------

    def evaluation_sets(self, split: Literal["val", "test"]) -> list[EvaluationSet]:
        if split == "val":
            return [EvaluationSet("val", WITHIN, "val", self.shots, self.queries, self.val_episodes, self.ways)]
        own = [name if self.trials == 20 else f"{name}[{self.trials}]" for name in (WITHIN, ACROSS)]
        return [EvaluationSet(name, name, "test", self.shots, self.queries, self.trials, self.ways) for name in own]

    def draw_for(self, evaluation: EvaluationSet, first: int, count: int) -> Any:
        draw = super().draw if evaluation.protocol.startswith(ACROSS) else self.draw
        return draw(self.eval_seed, evaluation.split, evaluation.shots, evaluation.queries, first, count)

    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> PairDraw | ImageDraw:  # type: ignore[override]
        pool = self.pools[split]
        if split == "train":
            return draw_pairs(pool, seed=seed, split=split, first=first, count=count)
        drawn = draw_trials(pool, self.ways, shots + queries, seed=seed, split=split, first=first, count=count)
        number, image = map(torch.from_numpy, drawn)
        return ImageDraw(number, image, torch.zeros_like(image[..., 0]), torch.tensor(SPLITS.index(split)), torch.tensor(shots))

    def build(self, drawn: PairDraw | ImageDraw) -> EpisodeBatch:  # type: ignore[override]
        if isinstance(drawn, ImageDraw):
            return super().build(drawn)
        images = self._images("train", drawn.image.device)[drawn.image.flatten()].float().div_(255)
        if self.affine:
            images = distorted(images, drawn.affine.flatten(0, 1))
        x = images.unflatten(0, drawn.image.shape)
        first = torch.zeros_like(drawn.image[:, :1])
        return EpisodeBatch(
            drawn.number, Episode(Examples(x[:, :1], first, 2), Examples(x[:, 1:], first + ~drawn.same[:, None], 2))
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> EpisodeBatch:
        return self.build(batch)


def drawn_by(pool: ClassPool, people: slice) -> ClassPool:
    """The drawings of each character by these people, of a pool with one by each."""
    per_class = int(pool.counts[0])
    images = pool.images.unflatten(0, (pool.num_classes, per_class))[:, people]
    offsets = np.arange(pool.num_classes + 1, dtype=np.int64) * images.shape[1]
    return ClassPool(images.flatten(0, 1), offsets, pool.names)


def distorted(images: Tensor, affine: Tensor) -> Tensor:
    """Images [n, C, S, S], float, scaled, sheared, turned counter-clockwise and shifted about their centre; paper comes in.

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
