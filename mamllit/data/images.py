"""Episodes of images: the pools of uint8 images lie on the device, and an episode is a gather from them."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.core.philox import SPLITS
from mamllit.data.episodic import EpisodicDataModule, Evaluation, Protocol, TestEpisodes
from mamllit.data.plain import AUGMENTATION, PlainBatch, PlainBatches, PlainDraw, augment, classes_of, draw_plain
from mamllit.data.pool import ClassPool
from mamllit.data.preparation import Preparation, border, preparation_of
from mamllit.data.sampler import draw_image_episodes, uniform
from mamllit.data.sources.prepare import say_once


class ImageDraw(NamedTuple):
    """`number` [T], `image` [T, N, P] pool positions, `turns` [T, N] quarter turns, `split` and `shots` (scalars)."""

    number: Tensor
    image: Tensor
    turns: Tensor
    split: Tensor
    shots: Tensor


class ImageDataModule(EpisodicDataModule):
    """Base of the image data sets; a subclass only has to `load` the three pools:

        import torch
        from mamllit.data import ClassPool, ImageDataModule

        class Noise(ImageDataModule):
            def load(self):
                images = torch.randint(0, 256, (60, 1, 28, 28), dtype=torch.uint8)
                labels = [i % 6 for i in range(60)]  # of each image: whatever can be told apart
                return {split: ClassPool.from_labels(images, labels) for split in ("train", "val", "test")}

        data = Noise(ways=5, shots=1, queries=3, standard_queries=3)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        episodes = data.on_after_batch_transfer(batch, 0).episodes  # or give `data` to a Trainer
        print(episodes.support.x.shape)  # [4, 5, 1, 28, 28]: tasks, ways x shots, channels, height, width

    Args:
        ways: N, classes per episode.
        train_ways: classes per episode in meta-training, for methods that take any number; None for `ways`.
        rotate: turn each class of each episode by a random multiple of 90 degrees, in every split (the paper's Omniglot).
        plain: train on plain batches of labelled images, not on episodes (for `mamllit.systems.PreTrainer`).
        test_shots: test with each of these numbers of shots; by default with `shots` alone.
        crop, flip: of the images in meta-training: cut each out of a border of so many zeros at random, and turn half of them
            left to right, as in `PlainBatches`. For photographs; a mirrored letter is another letter.
        (the others): see `EpisodicDataModule`.

    Raises:
        ValueError: for fewer than two ways, a negative crop; at `setup`, when a split is too small for the episodes asked for.
    """

    def __init__(
        self,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        meta_batch_size: int = 4,
        rotate: bool = False,
        standard_queries: int = 15,
        seed: int | None = None,
        eval_seed: int = 0,
        protocols: Sequence[Protocol] = ("paper", "standard"),
        val_episodes: int = 200,
        test_episodes: TestEpisodes = None,
        eval_batch_size: int = 10,
        num_workers: int = 0,
        plain: PlainBatches | None = None,
        test_shots: Sequence[int] | None = None,
        train_ways: int | None = None,
        crop: int = 0,
        flip: bool = False,
    ) -> None:
        evaluation = Evaluation(
            standard_queries=standard_queries, eval_seed=eval_seed, protocols=protocols, val_episodes=val_episodes,
            test_episodes=test_episodes, eval_batch_size=eval_batch_size,
        )  # fmt: skip
        super().__init__(shots, queries, meta_batch_size, evaluation, seed, num_workers)
        for name, number in (("ways", ways), ("train_ways", 2 if train_ways is None else train_ways)):
            if number < 2:
                raise ValueError(f"{name} is {number}; an episode needs at least 2 classes")
        if test_shots is not None and (not test_shots or min(test_shots) < 1 or len(set(test_shots)) < len(test_shots)):
            raise ValueError(f"test_shots is {list(test_shots)}; list numbers of shots >= 1, each once")
        if crop < 0:
            raise ValueError(f"crop is {crop}; it must be >= 0")
        self.ways, self.rotate, self.plain, self.crop, self.flip = ways, rotate, plain, crop, flip
        self.train_ways = ways if train_ways is None else train_ways
        self._test_shots = (shots,) if test_shots is None else tuple(test_shots)
        self.pools: dict[str, ClassPool] = {}
        self._on_device: dict[tuple[str, torch.device, bool], Tensor] = {}
        self.inverted = False  # whether black becomes 1 and white 0 on the way from the pools to an episode
        self._met: tuple[Preparation, str] | None = None

    invert: bool | Literal["auto", "ink"] | None = "auto"  # "auto": as the weights that meet the images know them; None: never
    references: ClassVar[bool] = False  # whether a test also measures what costs nothing, for want of published numbers

    @abstractmethod
    def load(self) -> dict[str, ClassPool]:
        """The pools of the splits "train", "val" and "test"."""

    def test_shots(self) -> Sequence[int]:
        return self._test_shots

    # ---- how the images were prepared, and the weights that are to see them --------------------------------------------

    def stored(self) -> Preparation:
        """How the images in the pools were prepared, as far as their shape tells."""
        _, channels, side, _ = next(iter(self.pools.values())).images.shape
        return Preparation(side, channels)

    @property
    def preparation(self) -> Preparation:
        """How the images of an episode were prepared; after `setup`."""
        stored = self.stored()
        return replace(stored, invert=self.invert == "ink" or stored.invert != self.inverted)

    def meet(self, weights: Preparation, name: str) -> None:
        """To be called before weights that were trained on images of this preparation see these images.

        Ink that is 0 here and 1 for the weights is inverted, where `invert` leaves it open; any other difference is refused, at
        once or at `setup`.

        Raises:
            ValueError: naming what differs and what to do.
        """
        self._met = weights, name
        if self.pools:
            self._settle()

    def _settle(self) -> None:
        assert self._met is not None
        weights, name = self._met
        if problems := weights.differences(self.preparation, name):
            raise ValueError(
                f"{'; '.join(problems)}. Match the data (`image_size`, `channels`) to the weights, or use other weights"
            )
        if weights.invert == self.preparation.invert:
            return
        known, given = ("ink" if p.invert else "white" for p in (weights, self.preparation))
        differ = f"the weights of {name} were trained with {known} = 1, but {type(self).__name__} has {given} = 1"
        if self.invert is None:
            raise ValueError(f"{differ}: use weights trained on such images, or train from scratch")
        if weights.invert and not self._dark_on_light():
            say_once(f"the weights of {name} were trained with ink = 1, as in these images, which are light on dark")
        elif self.invert == "auto":
            self.inverted = not self.inverted
            say_once(
                f"the images are dark on light and are inverted: the weights of {name} were trained with ink = 1"
                if self.inverted
                else f"the images are no longer inverted: the weights of {name} were trained with white = 1"
            )
        else:
            raise ValueError(f"{differ}, because `invert` is {str(self.invert).lower()}: leave it at auto")

    def _dark_on_light(self) -> bool:
        images = self.pools["train"].images
        return bool(border(images[:: max(1, len(images) // 1000)]).float().mean() > 127.5)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.plain is not None and self.plain.batch_size % self._world()[1]:
            raise ValueError(
                f"plain.batch_size is {self.plain.batch_size}, counted over all ranks, and cannot be split equally "
                f"over {self._world()[1]} ranks; use a number of ranks that divides it, or another batch_size"
            )
        if not self.pools:
            self.pools = self.load()
        if self.invert == "ink":
            self.inverted = self._dark_on_light()
        if self._met is not None:
            self._settle()
        asked = [("train", self.shots + self.queries)] if stage == "fit" and self.plain is None else []
        splits = {"fit": ("val",), "validate": ("val",), "test": ("test",)}.get(stage, ())
        asked += [(e.split, e.shots + e.queries) for split in splits for e in self.evaluation_sets(split)]  # type: ignore[arg-type]
        for split, per_class in asked:  # one draw of each finds out before hours are spent
            draw_image_episodes(
                self.pools[split].offsets, self._ways(split), per_class, seed=0, split=split, first=0, count=1, rotate=False
            )

    def _ways(self, split: str) -> int:
        return self.train_ways if split == "train" else self.ways

    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> ImageDraw:
        drawn = draw_image_episodes(
            self.pools[split].offsets, self._ways(split), shots + queries,
            seed=seed, split=split, first=first, count=count, rotate=self.rotate,
        )  # fmt: skip
        number, image, turns = map(torch.from_numpy, drawn)
        return ImageDraw(number, image, turns, torch.tensor(SPLITS.index(split)), torch.tensor(shots))

    @property
    def plain_classes(self) -> int:
        """How many classes the labels of the plain batches tell apart; after `setup`, where `plain` is given."""
        assert self.plain is not None
        return classes_of(self.pools["train"].offsets, self.plain)

    def train_dataloader(self) -> DataLoader:
        if self.plain is None:
            return super().train_dataloader()
        plain, (rank, world), seed = self.plain, self._world(), self.seed
        share = plain.batch_size // world

        def draw(step: int) -> PlainDraw:
            first = step * plain.batch_size + rank * share
            return draw_plain(self.pools["train"].offsets, plain, seed, first, share)

        return self._training_loader(draw)

    def build_plain(self, drawn: PlainDraw) -> PlainBatch:
        """The images of a plain batch, in [0, 1] and channels last."""
        assert self.plain is not None
        images = self._images("train", drawn.image.device).index_select(0, drawn.image)  # still bytes
        if self.plain.rotated_classes:
            images = rotate(images[:, None, None], drawn.turns[:, None])[:, 0, 0]
        images = augment(images, drawn.window, drawn.flip, self.plain.crop)
        x = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
        return PlainBatch(drawn.number, Examples(x, drawn.label, self.plain_classes))

    def on_after_batch_transfer(self, batch: ImageDraw | PlainDraw, dataloader_idx: int) -> EpisodeBatch | PlainBatch:  # type: ignore[override]
        return self.build_plain(batch) if isinstance(batch, PlainDraw) else self.build(batch)

    def population(self, batches: int = 8, size: int = 128) -> Iterator[Tensor]:
        """Batches of meta-train images [size, C, H, W], as an episode has them, for the statistics of norms.

        The same ones in every test: a permutation by `eval_seed` is cut up; with `rotate` each image is turned at random.
        """
        pool = self._images("train", torch.device("cpu"))
        random = torch.Generator().manual_seed(self.eval_seed)
        order = torch.randperm(len(pool), generator=random)
        for chosen in order[: batches * size].split(size):
            images = pool[chosen]
            if self.rotate:
                turns = torch.randint(4, (len(images), 1), generator=random)
                images = rotate(images[:, None, None], turns)[:, 0, 0]
            yield images.float().div_(255)

    def build(self, drawn: ImageDraw) -> EpisodeBatch:
        pool, shots = self._images(SPLITS[int(drawn.split)], drawn.image.device), int(drawn.shots)
        tasks, ways, per_class = drawn.image.shape
        images = pool.index_select(0, drawn.image.flatten()).unflatten(0, (tasks, ways, per_class))  # still bytes
        if self.rotate:
            images = rotate(images, drawn.turns)
        labels = torch.arange(ways, device=images.device)[:, None].expand(tasks, ways, per_class)

        def part(start: int, stop: int) -> Examples:
            # one copy from bytes to floats, in the layout of the episode; dividing gives the same floats everywhere
            x = images[:, :, start:stop].to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            return Examples(x.flatten(1, 2), labels[:, :, start:stop].flatten(1, 2), ways)

        episodes = Episode(part(0, shots), part(shots, per_class))
        if SPLITS[int(drawn.split)] == "train" and (self.crop or self.flip):
            episodes = self._augmented(drawn.number, episodes)
        return EpisodeBatch(drawn.number, episodes)

    def _augmented(self, number: Tensor, episodes: Episode) -> Episode:
        """Every image cropped and flipped independently, determined by the seed and the episode's number."""
        support, query = episodes
        x = torch.cat([support.x, query.x], 1)  # [T, images, C, S, S]
        rows = [uniform(self.seed, "train", i, 1, 3 * x.shape[1], stream=AUGMENTATION) for i in number.tolist()]
        chance = torch.from_numpy(np.concatenate(rows)).reshape(-1, 3).to(x.device)
        window, flip = (chance[:, :2] * (2 * self.crop + 1)).long(), chance[:, 2] < (0.5 if self.flip else 0.0)
        x = augment(x.flatten(0, 1), window, flip, self.crop).unflatten(0, x.shape[:2])
        shots = support.x.shape[1]
        return Episode(Examples(x[:, :shots], support.y, support.ways), Examples(x[:, shots:], query.y, query.ways))

    def _images(self, split: str, device: torch.device) -> Tensor:
        key = (split, device, self.inverted)
        if key not in self._on_device:
            images = self.pools[split].images.to(device)
            self._on_device[key] = 255 - images if self.inverted else images
        return self._on_device[key]


def weights_meet(data: object, described: Mapping[str, Any], name: str) -> None:
    """`ImageDataModule.meet` for weights whose checkpoint describes its `data`, where that and the data are of images."""
    if isinstance(data, ImageDataModule) and (weights := preparation_of(described)) is not None:
        data.meet(weights, name)


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Square images [T, N, P, C, S, S] turned counter-clockwise by `turns` [T, N] quarters, exactly."""
    side = images.shape[-1]
    position = torch.arange(side * side, device=images.device).reshape(side, side)
    table = torch.stack([torch.rot90(position, k) for k in range(4)]).flatten(1)  # [4, S * S]
    source = table[turns][:, :, None, None].expand(*images.shape[:-2], side * side)
    return torch.gather(images.flatten(-2), -1, source).reshape(images.shape)
