"""Few-shot episodes from a folder of your own images."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from mamllit.data.episodic import Protocol, TestEpisodes
from mamllit.data.images import ImageDataModule
from mamllit.data.plain import PlainBatches
from mamllit.data.pool import ClassPool
from mamllit.data.preparation import Preparation
from mamllit.data.sources.image_folder import load_image_folder, refuse_small


class ImageFolderDataModule(ImageDataModule):
    """Episodes of the images in a folder with one folder per class; PNG, JPEG, WebP, GIF, TIFF, BMP and the like, of any size.

    Classes may have different numbers of images. Images are rotated by their EXIF orientation and squeezed to squares;
    transparency becomes white. A split that is too small for the episodes is refused before training begins, including the
    test split.

    Args:
        root: folder `<class>/*` whose classes are split here, or `{train,val,test}/<class>/*`, split already.
        ways, shots: N and K of an episode.
        queries: query images per class in meta-training.
        meta_batch_size: episodes per meta-update over all ranks.
        image_size: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        split_ratios: shares of the classes for train, val and test. 30 classes become 19, 5 and 6, enough for 5 ways; where a
            split gets too few, the error names ratios that do.
        split_seed: which classes go where.
        train_classes, val_classes, test_classes: names of class folders, or a text file with one per line; all three or none.
            They replace the ratios; classes in none of them are left out.
        cache_dir: folder of the decoded images; by default `.mamllit-cache` in `root`.
        train_ways: classes per episode in meta-training (prototypical networks take more); None for `ways`.
        test_shots: test with each of these numbers of shots; by default with `shots` alone.
        plain: train on plain batches (see `PlainBatches`), for `mamllit.systems.PreTrainer`.
        invert: make black 1 and white 0. "ink" does so for drawings that are dark on light, so that ink is always 1, and
            paper 0 like the padding of a convolution. "auto" does so, with a message, only for weights that were trained with
            ink as 1, such as Omniglot's.
        crop, flip: of the images in meta-training; see `ImageDataModule`.
        seed, eval_seed, protocols, val_episodes, test_episodes, eval_batch_size, num_workers, standard_queries: see
            `EpisodicDataModule`.

    Raises:
        ValueError: for channels other than 1 and 3, an image size below 1, or one or two lists of classes.
        FileNotFoundError, ValueError, OSError: at `prepare_data` or `setup`, saying what is wrong and what to do.

    >>> from mamllit import ImageFolderDataModule
    >>> data = ImageFolderDataModule("my_images", ways=5, shots=1, image_size=32)
    >>> data.evaluation_sets("test")[0].episodes
    600
    """

    def __init__(
        self,
        root: str | Path,
        ways: int = 5,
        shots: int = 1,
        queries: int = 5,
        meta_batch_size: int = 4,
        image_size: int = 84,
        channels: int = 3,
        split_ratios: Sequence[float] = (0.64, 0.16, 0.2),
        split_seed: int = 0,
        train_classes: Sequence[str | int | float | bool] | str | Path | None = None,
        val_classes: Sequence[str | int | float | bool] | str | Path | None = None,
        test_classes: Sequence[str | int | float | bool] | str | Path | None = None,
        cache_dir: str | Path | None = None,
        standard_queries: int = 15,
        seed: int | None = None,
        eval_seed: int = 0,
        protocols: Sequence[Protocol] = ("paper", "standard"),
        val_episodes: int = 200,
        test_episodes: TestEpisodes = None,
        eval_batch_size: int = 10,
        num_workers: int = 0,
        test_shots: Sequence[int] | None = None,
        plain: PlainBatches | None = None,
        train_ways: int | None = None,
        invert: bool | Literal["auto", "ink"] = "auto",
        crop: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__(
            ways=ways, shots=shots, queries=queries, meta_batch_size=meta_batch_size, rotate=False,
            standard_queries=standard_queries, seed=seed, eval_seed=eval_seed, protocols=protocols,
            val_episodes=val_episodes, test_episodes=test_episodes, eval_batch_size=eval_batch_size, num_workers=num_workers,
            plain=plain, test_shots=test_shots, train_ways=train_ways, crop=crop, flip=flip,
        )  # fmt: skip
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; it must be 1 (grey) or 3 (RGB)")
        if invert not in (True, False, "auto", "ink"):
            raise ValueError(f"invert is {invert!r}; it must be true, false, 'auto' or 'ink'")
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}; it must be >= 1")
        given = {"train": train_classes, "val": val_classes, "test": test_classes}
        lists = {split: names for split, names in given.items() if names is not None}
        if len(lists) not in (0, 3):
            raise ValueError(
                f"there are lists of classes for {' and '.join(lists)} only; give one for each of train, val and test, or none"
            )
        self.root, self.image_size, self.channels, self.cache_dir = root, image_size, channels, cache_dir
        self.split_ratios, self.split_seed, self.lists = tuple(split_ratios), split_seed, lists or None
        self.invert, self.inverted = invert, invert is True

    references: ClassVar[bool] = True

    def stored(self) -> Preparation:
        return Preparation(self.image_size, self.channels, upright=True)

    def prepare_data(self) -> None:
        self.pools = self.load()  # on one rank: fills the cache that `setup` reads on the others

    def load(self) -> dict[str, ClassPool]:
        pools = load_image_folder(
            self.root, self.image_size, self.channels, self.split_ratios, self.split_seed, self.lists, self.cache_dir
        )
        refuse_small(pools, self.ways, self._images_per_class())
        return pools

    def _images_per_class(self) -> dict[str, tuple[int, str]]:
        """How many images the largest episode of each split takes, as a number and in words."""
        asked = {"train": [(self.shots, self.queries, "queries")]}
        for split in ("val", "test"):
            sets = self.evaluation_sets(split)  # type: ignore[arg-type]
            asked[split] = [(e.shots, e.queries, f"queries of the {e.protocol} protocol") for e in sets]
        largest = {split: max(episodes, key=lambda e: e[0] + e[1]) for split, episodes in asked.items()}
        return {split: (k + q, f"{k} shots + {q} {why}") for split, (k, q, why) in largest.items()}
