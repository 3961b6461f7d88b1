"""The harder sines of Bayesian MAML: y = A sin(w x - b), with a frequency of their own, and noise.

J. Yoon, T. Kim et al.: Bayesian Model-Agnostic Meta-Learning, NeurIPS 2018, arXiv 1806.03836, and the authors' code.
A ~ U[0.1, 5], b ~ U[0, 2 pi], w ~ U[0.5, 2], x ~ U[-5, 5]; Gaussian noise of 0.01 A in meta-training and support, none in the
evaluation's query targets. Meta-training has few tasks, 100 or 1,000, each with the same points whenever it comes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mamllit.data.episodic import Evaluation, Protocol, TestEpisodes
from mamllit.data.regression.curves import CurveDataModule


class FrequencySineDataModule(CurveDataModule):
    """Sines that differ in amplitude, phase and frequency.

    Args:
        shots, queries: support and query points per task in meta-training (the authors' code: as many of both).
        training_tasks: how many fixed tasks there are to meta-train on; None for an endless stream.
        noise: standard deviation of the noise, as a share of the amplitude.
        test_shots: see `CurveDataModule`; the others: see `EpisodicDataModule`.

    Departure: the next training task is drawn at random, where the authors' code goes through all in turn.

    Raises:
        ValueError: for a number below its bound.

    >>> from mamllit import FrequencySineDataModule
    >>> data = FrequencySineDataModule(shots=10)
    >>> data.episodes(data.evaluation_sets("val")[0], 0, 3).episodes.support.x.shape
    torch.Size([3, 10, 1])
    """

    task_numbers = 3  # amplitude, phase, frequency

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        meta_batch_size: int = 10,
        test_shots: Sequence[int] = (5, 10),
        noise: float = 0.01,
        training_tasks: int | None = 1000,
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
            shots, queries, meta_batch_size, test_shots, False, training_tasks, evaluation, seed=seed, num_workers=num_workers
        )
        if noise < 0:
            raise ValueError(f"noise is {noise}; it must be >= 0")
        self.relative_noise = noise

    def curve(self, task: Tensor, x: Tensor) -> Tensor:
        frequency = 0.5 + 1.5 * task[:, 2, None]
        return self._amplitude(task)[:, None] * torch.sin(frequency * x - 2 * math.pi * task[:, 1, None])

    def noise(self, task: Tensor) -> Tensor:
        return self.relative_noise * self._amplitude(task)

    def _amplitude(self, task: Tensor) -> Tensor:
        return 0.1 + 4.9 * task[:, 0]
