"""The base of the noisy curves that Bayesian methods are tried on: a task is a function of one variable, and a few numbers."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.data.episodic import EpisodicDataModule, Evaluation, EvaluationSet
from mamllit.data.sampler import uniform

X = (-5.0, 5.0)


class CurveDraw(NamedTuple):
    """`number` [T]; a task's own numbers `task` [T, p] in [0, 1); points `x`, `y` [T, P, 1], the first `support` (a scalar) of
    which are support."""

    number: Tensor
    task: Tensor
    x: Tensor
    y: Tensor
    support: Tensor


class CurveDataModule(EpisodicDataModule):
    """Curves y = f(x) + noise, x ~ U[-5, 5]. Subclasses say what a `curve` is, and how large its `noise`.

    Args:
        noisy_queries: add noise to the evaluation's query targets too; support and meta-training always have it.
        training_tasks: meta-train on that many fixed tasks with fixed points and noise, drawn again and again; None for an
            endless stream of new ones.
        test_shots, queries and the others: as in `SineDataModule`.

    Raises:
        ValueError: for a number below its bound.
    """

    ways = 1
    task_numbers: int  # p

    def __init__(
        self,
        shots: int,
        queries: int,
        meta_batch_size: int,
        test_shots: Sequence[int],
        noisy_queries: bool,
        training_tasks: int | None,
        evaluation: Evaluation,
        seed: int | None,
        num_workers: int,
    ) -> None:
        super().__init__(shots, queries, meta_batch_size, evaluation, seed, num_workers)
        if not test_shots or min(test_shots) < 1:
            raise ValueError(f"test_shots is {list(test_shots)}; it needs at least one number of shots >= 1")
        if training_tasks is not None and training_tasks < 1:
            raise ValueError(f"training_tasks is {training_tasks}; it must be >= 1, or null for an endless stream")
        self._test_shots, self.noisy_queries, self.training_tasks = tuple(test_shots), noisy_queries, training_tasks

    @abstractmethod
    def curve(self, task: Tensor, x: Tensor) -> Tensor:
        """The curves of tasks with the numbers `task` [T, p] at `x` [T, P]; [T, P]."""

    @abstractmethod
    def noise(self, task: Tensor) -> Tensor:
        """The standard deviation of each task's noise, [T]."""

    def test_shots(self) -> Sequence[int]:
        return self._test_shots

    def evaluation_sets(self, split: Literal["val", "test"]) -> list[EvaluationSet]:
        if split == "test":
            return super().evaluation_sets(split)
        return [EvaluationSet("val", "standard", "val", self.shots, self.standard_queries, self.val_episodes, self.ways)]

    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> CurveDraw:
        # streams of their own, so that task i is the same curve for every number of points
        def numbers(width: int, stream: int) -> Tensor:
            if split != "train" or self.training_tasks is None:
                return torch.from_numpy(uniform(seed, split, first, count, width, stream)).float()
            which = torch.from_numpy(uniform(seed, split, first, count, 1, 3)[:, 0] * self.training_tasks).long()
            return torch.from_numpy(uniform(seed, split, 0, self.training_tasks, width, stream)).float()[which]

        task, points = numbers(self.task_numbers, 0), numbers(shots + queries, 1)
        x = X[0] + (X[1] - X[0]) * points
        error = torch.special.ndtri(numbers(shots + queries, 2).clamp(2.0**-24, 1 - 2.0**-24)) * self.noise(task)[:, None]
        if split != "train" and not self.noisy_queries:
            error[:, shots:] = 0
        y = self.curve(task, x) + error
        return CurveDraw(torch.arange(first, first + count), task, x[..., None], y[..., None], torch.tensor(shots))

    def build(self, drawn: CurveDraw) -> EpisodeBatch:
        x, y, shots = drawn.x, drawn.y, int(drawn.support)
        return EpisodeBatch(drawn.number, Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])))

    def truth(self, evaluation: EvaluationSet, task: int, x: Tensor) -> Tensor:
        """The curve, without noise, of task number `task` of an evaluation set at the points `x` [P]."""
        drawn = self.draw(self.eval_seed, evaluation.split, evaluation.shots, evaluation.queries, task, 1)
        return self.curve(drawn.task, x[None])[0]
