"""Sine regression, the MAML paper's first experiment (section 5.1): y = A sin(x - p).

A ~ U[0.1, 5], p ~ U[0, pi], x ~ U[-5, 5], no noise. Support and query points of a task come from one draw.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mamllit.core.episode import Episode, EpisodeBatch, Examples
from mamllit.data.episodic import EpisodicDataModule, Evaluation, EvaluationSet, Protocol, TestEpisodes
from mamllit.data.sampler import uniform

AMPLITUDE, PHASE, X = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)


class SineDraw(NamedTuple):
    """`number`, `amplitude`, `phase` [T]; points `x`, `y` [T, P, 1], of which the first `support` (a scalar) are support."""

    number: Tensor
    amplitude: Tensor
    phase: Tensor
    x: Tensor
    y: Tensor
    support: Tensor


class SineDataModule(EpisodicDataModule):
    """Sine tasks, generated; there is no data set, and a validation or test task is simply another one.

    Args:
        shots: K, support points per task in meta-training.
        queries: query points per task in meta-training (the paper: K).
        meta_batch_size: tasks per meta-update over all ranks.
        test_shots: the K to test with (the paper: 5, 10 and 20, with one meta-trained model).
        query_points: "random" draws the evaluation's query points like the support (the paper's code); "grid" spaces them
            evenly over the x range, so that two evaluations differ by the tasks only.
        standard_queries: query points per task under the "standard" protocol.
        reveal_task: give the network amplitude and phase beside x, as inputs 2 and 3 (the paper's oracle baseline).
        seed, eval_seed, protocols, val_episodes, test_episodes, eval_batch_size, num_workers: see `EpisodicDataModule`.

    Raises:
        ValueError: for a number below its bound, or an unknown word.

    >>> from mamllit import SineDataModule
    >>> data = SineDataModule(shots=5)
    >>> batch = data.episodes(data.evaluation_sets("val")[0], 0, 3)
    >>> batch.episodes.support.x.shape
    torch.Size([3, 5, 1])
    """

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        meta_batch_size: int = 25,
        test_shots: Sequence[int] = (5, 10, 20),
        query_points: Literal["random", "grid"] = "random",
        standard_queries: int = 100,
        seed: int | None = None,
        eval_seed: int = 0,
        protocols: Sequence[Protocol] = ("paper", "standard"),
        val_episodes: int = 200,
        test_episodes: TestEpisodes = None,
        eval_batch_size: int = 500,
        num_workers: int = 0,
        reveal_task: bool = False,
    ) -> None:
        evaluation = Evaluation(
            standard_queries=standard_queries, eval_seed=eval_seed, protocols=protocols, val_episodes=val_episodes,
            test_episodes=test_episodes, eval_batch_size=eval_batch_size,
        )  # fmt: skip
        super().__init__(shots, queries, meta_batch_size, evaluation, seed, num_workers)
        if query_points not in ("random", "grid"):
            raise ValueError(f"query_points is {query_points!r}; it must be 'random' or 'grid'")
        if not test_shots or min(test_shots) < 1:
            raise ValueError(f"test_shots is {list(test_shots)}; it needs at least one number of shots >= 1")
        self._test_shots, self.query_points, self.reveal_task = tuple(test_shots), query_points, reveal_task

    ways = 1

    def test_shots(self) -> Sequence[int]:
        return self._test_shots

    def evaluation_sets(self, split: Literal["val", "test"]) -> list[EvaluationSet]:
        if split == "test":
            return super().evaluation_sets(split)
        return [EvaluationSet("val", "standard", "val", self.shots, self.standard_queries, self.val_episodes, self.ways)]

    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> SineDraw:
        # points come from a stream of their own, so that task i is the same sine for every number of points
        sine = torch.from_numpy(uniform(seed, split, first, count, 2)).float()
        points = torch.from_numpy(uniform(seed, split, first, count, shots + queries, stream=1)).float()
        x = X[0] + (X[1] - X[0]) * points
        if self.query_points == "grid" and split != "train":
            x[:, shots:] = torch.linspace(*X, queries)
        amplitude = AMPLITUDE[0] + (AMPLITUDE[1] - AMPLITUDE[0]) * sine[:, 0]
        phase = PHASE[0] + (PHASE[1] - PHASE[0]) * sine[:, 1]
        y = amplitude[:, None] * torch.sin(x - phase[:, None])
        number = torch.arange(first, first + count)
        return SineDraw(number, amplitude, phase, x[..., None], y[..., None], torch.tensor(shots))

    def build(self, drawn: SineDraw) -> EpisodeBatch:
        x, y, shots = drawn.x, drawn.y, int(drawn.support)
        if self.reveal_task:
            task = torch.stack([drawn.amplitude, drawn.phase], -1)
            x = torch.cat([x, task[:, None].expand(-1, x.shape[1], -1)], -1)
        return EpisodeBatch(drawn.number, Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])))

    def inputs(self, evaluation: EvaluationSet, task: int, x: Tensor) -> Tensor:
        if not self.reveal_task:
            return super().inputs(evaluation, task, x)
        drawn = self.draw(self.eval_seed, evaluation.split, evaluation.shots, evaluation.queries, task, 1)
        return torch.stack([x, drawn.amplitude.to(x.device).expand_as(x), drawn.phase.to(x.device).expand_as(x)], -1)

    def truth(self, evaluation: EvaluationSet, task: int, x: Tensor) -> Tensor:
        """The sine of task number `task` of an evaluation set at the points `x` [P]."""
        drawn = self.draw(self.eval_seed, evaluation.split, evaluation.shots, evaluation.queries, task, 1)
        return drawn.amplitude * torch.sin(x - drawn.phase)
