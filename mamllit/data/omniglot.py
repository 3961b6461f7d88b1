"""Omniglot (Lake et al. 2015): 1,623 handwritten characters of 50 alphabets, 20 drawings each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mamllit.data.episodic import Protocol, TestEpisodes
from mamllit.data.images import ImageDataModule
from mamllit.data.plain import PlainBatches
from mamllit.data.pool import ClassPool
from mamllit.data.preparation import Preparation, omniglot
from mamllit.data.sources.omniglot import load_omniglot


class OmniglotDataModule(ImageDataModule):
    """Omniglot episodes after the MAML paper: 28x28, ink 1 on paper 0, each class of an episode turned at random.

    Args:
        root: folder that holds a prepared cache, the extracted `images_background/` and `images_evaluation/`, or the two
            zips; they are looked for in this order.
        ways, shots: N and K of an episode.
        queries: query drawings per class in meta-training (the paper's code: K).
        meta_batch_size: episodes per meta-update over all ranks.
        split: "vinyals", the published lists of 1,028 / 172 / 423 characters; "maml", the paper's sizes 1,100 / 100 / 423; or
            "alphabets", whole alphabets, 30 / 10 / 10, of 964 / 307 / 352 characters.
        resize: "nearest", what the paper's images really are, or "antialias".
        rotate: random quarter turns per class (the paper: in every split).
        download: fetch the official zips into `root` where nothing is found there.
        train_ways: classes per episode in meta-training (prototypical networks take more); None for `ways`.
        test_shots: test with each of these numbers of shots; by default with `shots` alone.
        plain: train on plain batches (see `PlainBatches`), for `mamllit.systems.PreTrainer`.
        seed, eval_seed, protocols, val_episodes, test_episodes, eval_batch_size, num_workers, standard_queries: see
            `EpisodicDataModule`.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: at `prepare_data` or `setup`, saying what was found and what to do.

    >>> from mamllit import OmniglotDataModule
    >>> data = OmniglotDataModule("data/omniglot", ways=20, shots=1)
    >>> data.ways, [evaluation.name for evaluation in data.evaluation_sets("test")]
    (20, ['paper', 'standard'])
    """

    def __init__(
        self,
        root: str | Path,
        ways: int = 5,
        shots: int = 1,
        queries: int = 1,
        meta_batch_size: int = 32,
        split: Literal["vinyals", "maml", "alphabets"] = "vinyals",
        resize: Literal["nearest", "antialias"] = "nearest",
        rotate: bool = True,
        download: bool = False,
        standard_queries: int = 15,
        seed: int | None = None,
        eval_seed: int = 0,
        protocols: Sequence[Protocol] = ("paper", "standard"),
        val_episodes: int = 200,
        test_episodes: TestEpisodes = None,
        eval_batch_size: int = 50,
        num_workers: int = 0,
        test_shots: Sequence[int] | None = None,
        plain: PlainBatches | None = None,
        train_ways: int | None = None,
    ) -> None:
        super().__init__(
            ways=ways, shots=shots, queries=queries, meta_batch_size=meta_batch_size, rotate=rotate,
            standard_queries=standard_queries, seed=seed, eval_seed=eval_seed, protocols=protocols,
            val_episodes=val_episodes, test_episodes=test_episodes, eval_batch_size=eval_batch_size, num_workers=num_workers,
            plain=plain, test_shots=test_shots, train_ways=train_ways,
        )  # fmt: skip
        self.root, self.split, self.resize, self.download = root, split, resize, download

    invert = None  # ink is 1, as in the paper

    def stored(self) -> Preparation:
        return omniglot(self.resize)

    def prepare_data(self) -> None:
        self.pools = self._load(self.download)  # on one rank: fills the cache that `setup` reads on the others

    def load(self) -> dict[str, ClassPool]:
        return self._load(False)

    def _load(self, download: bool) -> dict[str, ClassPool]:
        return load_omniglot(self.root, split=self.split, resize=self.resize, download=download)
