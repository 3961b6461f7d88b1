"""learn2learn's task sets and benchmarks as DataModules, with what they lack: tasks that can be had again.

learn2learn draws tasks from the global random generators, so that none comes twice and no two runs are tested alike. Here
each task is drawn with the generators set by (seed, split, number): the same on any rank, with any number of workers and
after a resume, as everywhere in mamllit. The generators are put back afterwards.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import learn2learn as l2l
import numpy as np
import torch
from torch import Tensor

from mamllit.bridges.learn2learn.partition import episode_of, partition, shared_images
from mamllit.core.episode import EpisodeBatch
from mamllit.core.philox import SPLITS
from mamllit.data import EpisodicDataModule, Evaluation, EvaluationSet

log = logging.getLogger(__name__)
EPISODES = 600  # of a test, unless said otherwise
FIELDS = {"train": "train", "val": "validation", "test": "test"}  # of learn2learn's BenchmarkTasksets


class Tasks(NamedTuple):
    """`number` [T]; all examples of the tasks, `x` [T, N * P, ...] and `y` [T, N * P]; `shots` (a scalar)."""

    number: Tensor
    x: Tensor
    y: Tensor
    shots: Tensor


@contextmanager
def random_numbers(*key: int) -> Iterator[None]:
    """Within, the generators of Python, numpy and torch (CPU) begin where `key` says; afterwards they go on as if unused."""
    before = random.getstate(), np.random.get_state()
    own = np.random.SeedSequence(key).generate_state(3)
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(int(own[0]))
            np.random.seed(int(own[1]))
            torch.default_generator.manual_seed(int(own[2]))
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class TasksetDataModule(EpisodicDataModule):
    """Episodes from three `learn2learn.data.Taskset`s of classification tasks.

    Args:
        tasksets: what has `train`, `validation` and `test` (such as `get_tasksets` returns), or a function that makes it,
            which is then called in `prepare_data` on one rank first, and on each rank alike.
        ways: N of every task.
        shots: K, of the examples of a class those that a task is learned from; the others are its queries.
        queries: the others, in meta-training: the task set was made with shots + queries examples per class.
        meta_batch_size: episodes per meta-update over all ranks.
        test_queries: the same for validation and test (default: as `queries`).
        check_overlap: look whether meta-training and meta-test share images, and warn.
        seed, eval_seed, val_episodes, test_episodes, eval_batch_size, num_workers: see `EpisodicDataModule`. Workers pay
            where a task set reads or augments images, for that is done as a task is drawn.

    A task set with a fixed number of tasks is drawn from at random in meta-training, and gone through in order in tests.

    Raises:
        ValueError: at `setup`, for a task set with fewer tasks than a test has episodes; for a task that is not N x
            (shots + queries).
    """

    draw_ahead = 1  # a draw holds images, not numbers

    def __init__(
        self,
        tasksets: Any,
        ways: int,
        shots: int,
        queries: int,
        meta_batch_size: int,
        test_queries: int | None = None,
        check_overlap: bool = True,
        seed: int | None = None,
        eval_seed: int = 0,
        val_episodes: int = 200,
        test_episodes: int | None = None,
        eval_batch_size: int = 50,
        num_workers: int = 0,
    ) -> None:
        test_queries = queries if test_queries is None else test_queries
        evaluation = Evaluation(
            standard_queries=test_queries, eval_seed=eval_seed, protocols=("standard",), val_episodes=val_episodes,
            test_episodes=test_episodes, eval_batch_size=eval_batch_size,
        )  # fmt: skip
        super().__init__(shots, queries, meta_batch_size, evaluation, seed, num_workers)
        self.tasksets, self.ways, self.check_overlap = tasksets, ways, check_overlap
        self._made: Any = None

    def prepare_data(self) -> None:
        made = self._make()
        if self.check_overlap and (common := self._overlap(made)):
            log.warning(
                f"meta-training and meta-test share images: {common} of those in 100 tasks of each are the same. The test then "
                "does not measure how well new classes are learned (learn2learn 0.2.0's omniglot benchmark is built like this)"
            )

    def _make(self) -> Any:
        if self._made is None:
            with random_numbers(self.eval_seed):  # learn2learn's omniglot shuffles the classes before it splits them
                self._made = self.tasksets() if callable(self.tasksets) else self.tasksets
        return self._made

    def _overlap(self, made: Any) -> int:
        with random_numbers(self.eval_seed, 1):
            return shared_images(made.train, made.test)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._make()
        for split in {"fit": ("val",), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            for evaluation in self.evaluation_sets(split):  # type: ignore[arg-type]
                tasks = self._taskset(split).num_tasks
                if 0 <= tasks < evaluation.episodes:
                    raise ValueError(
                        f"the {split} task set has {tasks} tasks, fewer than the {evaluation.episodes} evaluation episodes; "
                        f"set {'val' if split == 'val' else 'test'}_episodes to at most that, or num_tasks to -1"
                    )

    def evaluation_sets(self, split: Literal["val", "test"]) -> list[EvaluationSet]:
        if split == "val":
            return [EvaluationSet("val", "taskset", "val", self.shots, self.standard_queries, self.val_episodes, self.ways)]
        episodes = self.test_episodes.get("standard", EPISODES)
        name = "taskset" if episodes == EPISODES else f"taskset[{episodes}]"
        return [EvaluationSet(name, name, "test", self.shots, self.standard_queries, episodes, self.ways)]

    def _taskset(self, split: str) -> Any:
        return getattr(self._make(), FIELDS[split])

    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> Tasks:
        tasks = [self._task(seed, split, number) for number in range(first, first + count)]
        parted = [partition(x, y, self.ways, shots + queries, split) for x, y in tasks]
        x, y = (torch.stack([part[i] for part in parted]) for i in (0, 1))
        return Tasks(torch.arange(first, first + count), x, y, torch.tensor(shots))

    def _task(self, seed: int, split: str, number: int) -> tuple[Tensor, Tensor]:
        taskset, stream = self._taskset(split), SPLITS.index(split)
        with random_numbers(seed, stream, number):
            if taskset.num_tasks < 0:
                return taskset.get_task(taskset.sample_task_description())
            chosen = random.randrange(taskset.num_tasks) if split == "train" else number
        if chosen not in taskset.sampled_descriptions:
            with random_numbers(self.eval_seed, stream, chosen, 1):  # a fixed task is the same whoever draws it first
                taskset.sampled_descriptions[chosen] = taskset.sample_task_description()
        with random_numbers(seed, stream, number, 2):  # random changes to the images, where there are any
            return taskset.get_task(taskset.sampled_descriptions[chosen])

    def build(self, drawn: Tasks) -> EpisodeBatch:
        return EpisodeBatch(drawn.number, episode_of(drawn.x, drawn.y, self.ways, int(drawn.shots)))


class BenchmarkDataModule(TasksetDataModule):
    """A benchmark of `learn2learn.vision.benchmarks` by its name.

    Args:
        name: one of `list_tasksets()`: "cifarfs", "fc100", "tiered-imagenet", "mini-imagenet", "omniglot". (The last one's
            tasks are drawn from all characters, in meta-training and meta-test alike, as of 0.2.0; see `check_overlap`.)
        root: where learn2learn downloads to.
        num_tasks: of each task set; -1 for no end.
        (the others): see `TasksetDataModule`.

    Raises:
        ValueError: for an unknown name.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        meta_batch_size: int = 4,
        test_queries: int | None = None,
        num_tasks: int = -1,
        check_overlap: bool = True,
        seed: int | None = None,
        eval_seed: int = 0,
        val_episodes: int = 200,
        test_episodes: int | None = None,
        eval_batch_size: int = 50,
        num_workers: int = 0,
    ) -> None:
        known = sorted(l2l.vision.benchmarks.list_tasksets())
        if name not in known:
            raise ValueError(f"learn2learn has no benchmark {name!r}; it has {', '.join(known)}")
        tested = queries if test_queries is None else test_queries

        def make() -> Any:
            return l2l.vision.benchmarks.get_tasksets(
                name, train_ways=ways, train_samples=shots + queries, test_ways=ways, test_samples=shots + tested,
                num_tasks=num_tasks, root=str(root),
            )  # fmt: skip

        super().__init__(
            tasksets=make, ways=ways, shots=shots, queries=queries, meta_batch_size=meta_batch_size,
            test_queries=test_queries, check_overlap=check_overlap, seed=seed, eval_seed=eval_seed,
            val_episodes=val_episodes, test_episodes=test_episodes, eval_batch_size=eval_batch_size, num_workers=num_workers,
        )  # fmt: skip
