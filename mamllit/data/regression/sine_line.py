"""Ambiguous regression: a task is a sine or a line, and few noisy points do not tell which.

C. Finn, K. Xu, S. Levine: Probabilistic Model-Agnostic Meta-Learning, NeurIPS 2018, arXiv 1806.02817. Half of the tasks are
y = A sin(x + p), A ~ U[0.1, 5], p ~ U[0, pi], half y = a x + b, a, b ~ U[-3, 3]; x ~ U[-5, 5], Gaussian noise of 0.3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mamllit.data.episodic import Evaluation, Protocol, TestEpisodes
from mamllit.data.regression.curves import CurveDataModule


class SineLineDataModule(CurveDataModule):
    """Sines and lines.

    Args:
        shots, queries: support and query points per task in meta-training.
        noise_std: standard deviation of the noise on y, in support and query.
        test_shots, training_tasks: see `CurveDataModule`; the others: see `EpisodicDataModule`.

    Raises:
        ValueError: for a number below its bound.

    >>> from mamllit import SineLineDataModule
    >>> data = SineLineDataModule(shots=5)
    >>> data.episodes(data.evaluation_sets("val")[0], 0, 3).episodes.support.x.shape
    torch.Size([3, 5, 1])
    """

    task_numbers = 3  # which of the two, then amplitude and phase, or slope and intercept

    def __init__(
        self,
        shots: int = 5,
        queries: int = 15,
        meta_batch_size: int = 25,
        test_shots: Sequence[int] = (5,),
        noise_std: float = 0.3,
        training_tasks: int | None = None,
        standard_queries: int = 100,
        seed: int | None = None,
        eval_seed: int = 0,
        protocols: Sequence[Protocol] = ("standard",),
        val_episodes: int = 200,
        test_episodes: TestEpisodes = None,
        eval_batch_size: int = 500,
        num_workers: int = 0,
    ) -> None:
        evaluation = Evaluation(
            standard_queries=standard_queries, eval_seed=eval_seed, protocols=protocols, val_episodes=val_episodes,
            test_episodes=test_episodes, eval_batch_size=eval_batch_size,
        )  # fmt: skip
        super().__init__(
            shots, queries, meta_batch_size, test_shots, True, training_tasks, evaluation, seed=seed, num_workers=num_workers
        )
        if noise_std < 0:
            raise ValueError(f"noise_std is {noise_std}; it must be >= 0")
        self.noise_std = noise_std

    def curve(self, task: Tensor, x: Tensor) -> Tensor:
        which, first, second = (task[:, i, None] for i in range(3))
        sine = (0.1 + 4.9 * first) * torch.sin(x + math.pi * second)
        line = (6 * first - 3) * x + (6 * second - 3)
        return torch.where(which < 0.5, sine, line)

    def noise(self, task: Tensor) -> Tensor:
        return torch.full_like(task[:, 0], self.noise_std)
