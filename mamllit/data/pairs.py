"""Omniglot as Koch et al. 2015 used it: pairs of drawings to train on, and one-shot trials within an alphabet.

G. Koch, R. Zemel, R. Salakhutdinov: Siamese Neural Networks for One-shot Image Recognition, 2015, sections 4.1 to 4.3. Training
sees 30 alphabets by 12 people; validation and test have ten other alphabets each, by four other people each. A trial shows one
person's drawings of 20 characters of an alphabet, and asks which of them another person's drawing is.

A pair is an episode of two ways: one support image, of class 0, and one query image, of class 0 or 1.
`mamllit.data.pair_draws` draws the pairs.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.core.philox import SPLITS
from mamllit.data.episodic import EvaluationSet
from mamllit.data.images import ImageDataModule, ImageDraw
from mamllit.data.pair_draws import PairDraw, distorted, draw_pairs, draw_trials
from mamllit.data.pool import ClassPool
from mamllit.data.preparation import Preparation, omniglot_streams
from mamllit.data.sources.omniglot import SIDE, load_omniglot

DRAWERS = {"train": slice(0, 12), "val": slice(12, 16), "test": slice(16, 20)}  # the people who drew, of 20
WITHIN, ACROSS = "within_alphabet", "across_alphabets"


class OmniglotPairsDataModule(ImageDataModule):
    """Omniglot as pairs for training, and within-alphabet one-shot trials for validation and test.

    A test has two sets: "within_alphabet", Koch's protocol, by default his 400 trials (20 episodes of 20 queries, each of the
    ten alphabets twice), and "across_alphabets", episodes of as many characters of all ten alphabets. Validation, within
    alphabets, has his 320 trials. The paper says neither which ten of the evaluation alphabets are for the test nor who drew
    for what: here these are the last ten by name, and people 1 to 12, 13 to 16 and 17 to 20.

    Args:
        root, resize, download: see `OmniglotDataModule`.
        ways: N, characters of a trial.
        shots, queries: number of people who drew the support, and the query, of an evaluation episode.
        meta_batch_size: pairs per update over all ranks together.
        image_size: H = W of the images; a drawing has 105.
        affine: distort the two images of each pair (rotation, shear, scale and shift, each with probability 1/2).
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
