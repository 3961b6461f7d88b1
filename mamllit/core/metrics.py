"""Evaluation over episodes: mean, 95% interval, median and share of diverged episodes, after each number of inner steps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Summary(NamedTuple):
    """Per number of inner steps 0, 1, ...: statistics over the episodes, each [steps + 1], float64.

    `ci95` is the half-width 1.96 * s / sqrt(episodes), s the sample standard deviation over episodes. An episode is
    `diverged` where its value is not finite or above the metric's bound; such episodes stay in mean and interval, so a mean
    of inf is one that the share of diverged episodes explains.
    """

    mean: Tensor
    ci95: Tensor
    median: Tensor
    diverged: Tensor
    episodes: int


class EpisodeMetric(Metric):
    """Keeps one row of values per episode, [steps + 1], over batches and ranks.

    Args:
        diverged_above: a value above this counts as diverged; None means only non-finite values do.

    `update(index, values)` takes episode numbers [T] and values [T, steps + 1]. `summary()` puts the episodes in order first
    and counts each once, so it does not depend on how they were spread over ranks and batches.
    """

    full_state_update = False
    index: list[Tensor]
    values: list[Tensor]
    ordered: tuple[Tensor, Tensor]

    def __init__(self, diverged_above: float | None = None) -> None:
        super().__init__()
        self.diverged_above = diverged_above
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, values: Tensor) -> None:
        self.index.append(index)
        self.values.append(values.double())

    def per_episode(self) -> tuple[Tensor, Tensor]:
        """Episode numbers [E] and values [E, steps + 1], in order of the numbers, each episode once."""
        index, values = dim_zero_cat(self.index).cpu(), dim_zero_cat(self.values).cpu()
        order = torch.argsort(index, stable=True)
        index, values = index[order], values[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        return index[first], values[first]

    def summary(self) -> Summary:
        """What `compute()` finds, each [steps + 1]; torchmetrics takes the dimension from tensors of one number there."""
        found: Summary = self.compute()
        mean, ci95, median, diverged = (value.reshape(-1) for value in found[:4])
        return Summary(mean, ci95, median, diverged, found.episodes)

    def compute(self) -> Summary:
        self.ordered = self.per_episode()  # of all ranks: compute runs on the synchronised state
        values = self.ordered[1]
        episodes = len(values)
        bound = math.inf if self.diverged_above is None else self.diverged_above
        return Summary(
            mean=values.mean(0),
            ci95=1.96 * values.std(0) / math.sqrt(episodes),
            median=_median(values),
            diverged=(~values.isfinite() | (values > bound)).double().mean(0),
            episodes=episodes,
        )


def _median(values: Tensor) -> Tensor:
    """Median over the first dimension, the mean of the two middle values where their number is even; NaN sorts last."""
    ordered = values.sort(0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
