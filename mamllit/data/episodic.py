"""The base of every episodic LightningDataModule: endless meta-batches for training, fixed episodes for evaluation.

A worker only draws numbers (which classes, which images); `on_after_batch_transfer` turns them into an `EpisodeBatch` on the
device. Meta-batch s of training holds the episodes s*B to (s+1)*B of the train stream, of which each rank takes its own
contiguous share; an epoch, and a resumed run, begins at the meta-batch after the last one trained on.
"""

import errno
import os
import pickle
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mamllit.core.episode import EpisodeBatch

Protocol = Literal["paper", "standard"]
TestEpisodes = int | Mapping[Protocol, int] | None  # for both protocols, for some, or the protocols' own numbers
BLOCK = 16
PROTOCOL_EPISODES: Mapping[Protocol, int] = {"paper": 600, "standard": 2000}


@dataclass(frozen=True)
class EvaluationSet:
    """A fixed set of evaluation episodes.

    `name` is what is logged and printed, e.g. "paper" or "paper/5-shot"; episodes 0 to `episodes` of `split` of `ways`
    classes, with `shots` support and `queries` query examples of each. `stream`: L, if each is a stream of L examples without
    a support; 0 for episodes.

    >>> from mamllit import SineDataModule
    >>> [evaluation.name for evaluation in SineDataModule(test_shots=[5, 10]).evaluation_sets("test")]
    ['paper/5-shot', 'paper/10-shot', 'standard/5-shot', 'standard/10-shot']
    """

    name: str
    protocol: str
    split: str
    shots: int
    queries: int
    episodes: int
    ways: int = 1
    stream: int = 0

    def measured(self, episodes: int) -> "EvaluationSet":
        """This set with the episodes that were evaluated; their number is in the name if the Trainer's limits cut it short."""
        if episodes == self.episodes or self.split == "val":  # a protocol's name promises its number of episodes
            return replace(self, episodes=episodes)
        label = f"{self.protocol.partition('[')[0]}[{episodes}]"
        return replace(self, name=self.name.replace(self.protocol, label, 1), protocol=label, episodes=episodes)


@dataclass(frozen=True)
class Evaluation:
    """How a DataModule validates and tests; the constructors of the data sets take these settings one by one.

    Args:
        standard_queries: query examples per class under the "standard" protocol.
        eval_seed: of the validation and test episodes; they do not depend on `seed`, so that runs can be compared.
        protocols: "paper" (600 test episodes, K queries per class) and/or "standard" (2,000, `standard_queries`).
        val_episodes: number of validation episodes.
        test_episodes: overrides the protocols' number of test episodes, of both, or of some, as in `{standard: 200}`; the
            results are then named "standard[200]".
        eval_batch_size: episodes evaluated at once on each rank.
    """

    standard_queries: int = 15
    eval_seed: int = 0
    protocols: Sequence[Protocol] = ("paper", "standard")
    val_episodes: int = 200
    test_episodes: TestEpisodes = None
    eval_batch_size: int = 50


def test_episodes_of(asked: TestEpisodes) -> Mapping[Protocol, int]:
    """The numbers that replace a protocol's own."""
    if asked is None:
        return {}
    return dict.fromkeys(PROTOCOL_EPISODES, asked) if isinstance(asked, int) else dict(asked)


class EpisodicDataModule(L.LightningDataModule, ABC):
    """Episodes of one data set. Subclasses say how to `draw` numbers and how to `build` episodes from them.

    Args:
        shots: K, support examples per class.
        queries: query examples per class in meta-training.
        meta_batch_size: B, episodes per meta-update over all ranks together (the paper's meta-batch).
        evaluation: how it validates and tests, see `Evaluation`.
        seed: of the training episodes; None takes the seed of `seed_everything`.
        num_workers: processes that draw episodes ahead; 0 is fast, because drawing is cheap.

    Raises:
        ValueError: for a number below its bound or an unknown protocol; at `setup`, when the ranks do not divide B.
    """

    ways: int  # N, classes per episode; 1 in regression
    draw_ahead = BLOCK  # meta-batches of a training without workers that are drawn in one call

    def __init__(
        self,
        shots: int,
        queries: int,
        meta_batch_size: int,
        evaluation: Evaluation,
        seed: int | None,
        num_workers: int,
    ) -> None:
        super().__init__()
        numbers = test_episodes_of(evaluation.test_episodes)
        bounds = {
            "shots": (shots, 1),
            "queries": (queries, 1),
            "meta_batch_size": (meta_batch_size, 1),
            "standard_queries": (evaluation.standard_queries, 1),
            "val_episodes": (evaluation.val_episodes, 2),
            "test_episodes": (min(numbers.values(), default=2), 2),
            "eval_batch_size": (evaluation.eval_batch_size, 1),
            "num_workers": (num_workers, 0),
            "eval_seed": (evaluation.eval_seed, 0),
            "seed": (seed or 0, 0),
        }
        problems = [f"{name} is {value}; it must be >= {low}" for name, (value, low) in bounds.items() if value < low]
        problems += [
            f"protocol {name!r} is unknown; choose from {sorted(PROTOCOL_EPISODES)}"
            for name in dict.fromkeys([*evaluation.protocols, *numbers])
            if name not in PROTOCOL_EPISODES
        ]
        if problems:
            raise ValueError("; ".join(problems))
        self.shots, self.queries, self.meta_batch_size = shots, queries, meta_batch_size
        self.standard_queries, self.protocols = evaluation.standard_queries, tuple(evaluation.protocols)
        self.eval_seed, self.num_workers = evaluation.eval_seed, num_workers
        self.val_episodes, self.test_episodes = evaluation.val_episodes, numbers
        self.eval_batch_size = evaluation.eval_batch_size
        self._seed = seed

    @property
    def seed(self) -> int:
        """The seed of the training episodes."""
        return self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def seeded(self) -> bool:
        """Whether a seed was given, for the episodes or by `seed_everything`; without one they are those of seed 0."""
        return self._seed is not None or "PL_GLOBAL_SEED" in os.environ

    @abstractmethod
    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> Any:
        """Numbers for the episodes `first` to `first + count` of a stream: a tuple of tensors, on the CPU."""

    @abstractmethod
    def build(self, drawn: Any) -> EpisodeBatch:
        """Episodes from what `draw` returned, on the device that it was moved to."""

    def test_shots(self) -> Sequence[int]:
        """The numbers of shots that a test runs with."""
        return (self.shots,)

    def evaluation_sets(self, split: Literal["val", "test"]) -> list[EvaluationSet]:
        """The fixed evaluation sets of `split`, in the order of its dataloaders."""
        if split == "val":
            queries = self._paper_queries(self.shots)
            return [EvaluationSet("val", "paper", "val", self.shots, queries, self.val_episodes, self.ways)]
        sets = []
        for protocol in self.protocols:
            for shots in self.test_shots():
                queries = self._paper_queries(shots) if protocol == "paper" else self.standard_queries
                episodes = self.test_episodes.get(protocol, PROTOCOL_EPISODES[protocol])
                label = protocol if episodes == PROTOCOL_EPISODES[protocol] else f"{protocol}[{episodes}]"
                name = label if len(self.test_shots()) == 1 else f"{label}/{shots}-shot"
                sets.append(EvaluationSet(name, label, "test", shots, queries, episodes, self.ways))
        return sets

    def _paper_queries(self, shots: int) -> int:
        return shots  # cbfinn/maml evaluates on 2K images per class: K support, K query

    def episodes(self, evaluation: EvaluationSet, first: int = 0, count: int | None = None) -> EpisodeBatch:
        """Episodes of an evaluation set, on the CPU (for figures and for use without a Trainer)."""
        count = evaluation.episodes - first if count is None else count
        return self.build(self.draw_for(evaluation, first, count))

    def draw_for(self, evaluation: EvaluationSet, first: int, count: int) -> Any:
        """Numbers for the episodes `first` to `first + count` of an evaluation set."""
        return self.draw(self.eval_seed, evaluation.split, evaluation.shots, evaluation.queries, first, count)

    def inputs(self, evaluation: EvaluationSet, task: int, x: torch.Tensor) -> torch.Tensor:
        """What the network gets for the points `x` [P] of a task of a one-dimensional regression, [P, inputs]: x alone."""
        return x[:, None]

    def setup(self, stage: str) -> None:
        world = self._world()[1]
        if self.meta_batch_size % world:
            raise ValueError(
                f"meta_batch_size is {self.meta_batch_size}, counted over all ranks, and cannot be split "
                f"equally over {world} ranks; use a number of ranks that divides it, or another meta_batch_size"
            )

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader:
        rank, world = self._world()
        share = self.meta_batch_size // world
        # one process alone draws several steps' meta-batches at once: they are one contiguous run of episodes
        block = self.draw_ahead if world == 1 and self.num_workers == 0 else 1
        drawn: dict[int, Any] = {}

        def draw(step: int) -> Any:
            if step not in drawn:
                first = step * self.meta_batch_size + rank * share
                batches = self.draw(self.seed, "train", self.shots, self.queries, first, share * block)
                drawn.clear()
                for i in range(block):
                    part = slice(i * share, (i + 1) * share)
                    drawn[step + i] = type(batches)(*(t[part] if t.dim() else t for t in batches))
            return drawn.pop(step)

        return self._training_loader(draw)

    def _training_loader(self, draw: Callable[[int], Any]) -> DataLoader:
        """Endless draws, from the batch that the training has reached."""
        return self._loader(_Draws(draw, self._trained_on, None), _Stream)

    def _trained_on(self) -> int:
        """Meta-batches of the train stream that the run has used, in all epochs and sessions, with any gradient accumulation.

        Lightning's `overfit_batches` asks for the same ones in every epoch.
        """
        if self.trainer is None:
            return 0
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        same = self.trainer.overfit_batches  # type: ignore[attr-defined]
        return done % int(same) if same else done

    def _evaluation_loaders(self, split: Literal["val", "test"]) -> list[DataLoader]:
        rank, world = self._world()
        loaders = []
        for evaluation in self.evaluation_sets(split):
            if evaluation.episodes < world:
                raise ValueError(
                    f"the evaluation set {evaluation.name!r} has {evaluation.episodes} episodes for {world} ranks; each rank "
                    "needs one: evaluate on fewer ranks, or on more episodes"
                )
            start, stop = (evaluation.episodes * r // world for r in (rank, rank + 1))

            def draw(batch: int, evaluation: EvaluationSet = evaluation, start: int = start, stop: int = stop) -> Any:
                first = start + batch * self.eval_batch_size
                n = min(self.eval_batch_size, stop - first)
                return self.draw_for(evaluation, first, n)

            loaders.append(self._loader(_Draws(draw, lambda: 0, -(-(stop - start) // self.eval_batch_size))))
        return loaders

    def val_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders("test")

    def _loader(self, draws: "_Draws", kind: type["_Loader"] | None = None) -> DataLoader:
        workers = self.num_workers
        # fork keeps `draw`, a closure over this module, out of a pickle; the workers only call numpy
        context = "fork" if workers else None
        return (kind or _Loader)(draws, batch_size=None, num_workers=workers, multiprocessing_context=context)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if device.type == "cpu":
            return batch
        # scalars are read by Python in `build`: they stay here, so that reading them does not wait for the device
        return type(batch)(*(t.to(device, non_blocking=True) if t.dim() else t for t in batch))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> EpisodeBatch:
        return self.build(batch)


class _Draws(IterableDataset):
    """Draws number `start()`, `start() + 1`, ..., split over the workers so that they come back in order.

    `start` is asked at the beginning of each iteration, that is of each epoch; a worker is a fork made then, and sends bytes:
    tensors would go through /dev/shm, and where that is full, wait for ever.
    An IterableDataset, because Lightning puts no sampler of its own on one: the ranks' shares are already in `draw`.
    """

    def __init__(self, draw: Callable[[int], Any], start: Callable[[], int], length: int | None) -> None:
        self.draw, self.start, self.length = draw, start, length

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start = self.start()
        while self.length is None or number < self.length:
            drawn = self.draw(start + number)
            yield drawn if worker is None else pickle.dumps(drawn)
            number += stride


class _Loader(DataLoader):
    """Opens what the workers of `_Draws` send."""

    def __iter__(self) -> Any:
        try:
            items = super().__iter__()
        except OSError as error:
            if error.errno != errno.ENOSPC or not self.num_workers:
                raise
            free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
            raise OSError(
                f"num_workers is {self.num_workers}, but /dev/shm has no space ({free:,} bytes are free) for the "
                "locks of the workers: free some, or draw the episodes without workers (--data.num_workers 0)"
            ) from error
        return (pickle.loads(item) for item in items) if self.num_workers else items


class _Stream(_Loader):
    """Tells Lightning, which would warn, that a run may be resumed within an epoch: see `_trained_on`."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the trainer counts the meta-batches."""
