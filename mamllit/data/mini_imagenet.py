"""mini-ImageNet (Vinyals et al. 2016; split of Ravi and Larochelle 2017): 100 classes of 600 photographs, 64 / 16 / 20."""

from collections.abc import Sequence
from pathlib import Path

from mamllit.data.episodic import Protocol, TestEpisodes
from mamllit.data.images import ImageDataModule
from mamllit.data.plain import PlainBatches
from mamllit.data.pool import ClassPool
from mamllit.data.sources.mini_imagenet import load_mini_imagenet


class MiniImagenetDataModule(ImageDataModule):
    """mini-ImageNet episodes after the MAML paper: 84x84 RGB in [0, 1], not normalised, by default not augmented.

    Under the "paper" protocol a test episode has K query images per class, as in the paper's code.

    Args:
        root: folder that holds `images/` with `train.csv`, `val.csv`, `test.csv`; or `train/`, `val/`, `test/` of class
            folders; or the pickles `mini-imagenet-cache-{train,val,test}.pkl`; or the cache of an earlier run. They are
            looked for in this order, and one line says what was found.
        ways, shots: N and K of an episode.
        queries: query images per class in meta-training (the paper: 15).
        meta_batch_size: episodes per meta-update over all ranks (the paper: 4 for 1 shot, 2 for 5).
        image_size: side of the images in pixels; others are squeezed to it.
        download: fetch the pickles (1.8 GB) into `root` where nothing is found there.
        cache_dir: folder of the decoded images (1.3 GB); by default `.mamllit-cache` in `root`.
        train_ways: classes per episode in meta-training (prototypical networks take more); None for `ways`.
        test_shots: test with each of these numbers of shots; by default with `shots` alone.
        crop, flip: of the images in meta-training; see `ImageDataModule`.
        plain: train on plain batches (see `PlainBatches`), for `mamllit.systems.PreTrainer`.
        seed, eval_seed, protocols, val_episodes, test_episodes, eval_batch_size, num_workers, standard_queries: see
            `EpisodicDataModule`.

    Raises:
        FileNotFoundError, ValueError, RuntimeError, OSError: at `prepare_data` or `setup`, saying what to do.

    >>> from mamllit import MiniImagenetDataModule
    >>> data = MiniImagenetDataModule("data/mini-imagenet", ways=5, shots=5)
    >>> data.evaluation_sets("val")[0].shots
    5
    """

    def __init__(
        self,
        root: str | Path,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        meta_batch_size: int = 4,
        image_size: int = 84,
        download: bool = False,
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
        crop: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__(
            ways=ways, shots=shots, queries=queries, meta_batch_size=meta_batch_size, rotate=False,
            standard_queries=standard_queries, seed=seed, eval_seed=eval_seed, protocols=protocols,
            val_episodes=val_episodes, test_episodes=test_episodes, eval_batch_size=eval_batch_size, num_workers=num_workers,
            plain=plain, test_shots=test_shots, train_ways=train_ways, crop=crop, flip=flip,
        )  # fmt: skip
        self.root, self.image_size, self.download, self.cache_dir = root, image_size, download, cache_dir

    invert = None  # photographs

    def prepare_data(self) -> None:
        self.pools = self._load(self.download)  # on one rank: fills the cache that `setup` reads on the others

    def load(self) -> dict[str, ClassPool]:
        return self._load(False)

    def _load(self, download: bool) -> dict[str, ClassPool]:
        return load_mini_imagenet(self.root, self.image_size, download, self.cache_dir)
