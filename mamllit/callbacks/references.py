"""Baselines without training, measured on the episodes of a test: chance, and the nearest class mean of plain features.

There are no published numbers for a user's own images: 66% looks good until one sees that the nearest mean of gradient
histograms reaches 72%.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mamllit.backbones import Hog
from mamllit.core.episode import EpisodeBatch
from mamllit.core.metrics import EpisodeMetric, Summary
from mamllit.core.tree import item
from mamllit.methods.parts.features import class_means, square_distances

MOST = 100  # episodes of a set that are measured
FEATURES: dict[str, Callable[[], nn.Module]] = {"pixels": nn.Flatten, "HOG": Hog}


class References:
    """The baselines of every evaluation set of a test.

    >>> from mamllit.callbacks.references import References
    >>> References().of("standard")  # nothing measured
    {}
    """

    def __init__(self) -> None:
        self._features = {name: make() for name, make in FEATURES.items()}
        self._metrics: dict[str, dict[str, EpisodeMetric]] = {}
        self._ways: dict[str, int] = {}

    def update(self, name: str, batch: EpisodeBatch) -> None:
        """Measure the episodes of a batch of the set `name`, until it has enough; images of fewer than 8 pixels have no HOG."""
        support = batch.episodes.support
        self._ways[name] = support.ways
        side = min(support.x.shape[-2:])
        metrics = self._metrics.setdefault(name, {kind: EpisodeMetric() for kind in FEATURES if kind != "HOG" or side >= 8})
        if sum(map(len, metrics["pixels"].index)) >= MOST:
            return
        for kind, metric in metrics.items():
            values = [_accuracy(self._features[kind], batch, task) for task in range(len(batch.number))]
            metric.update(batch.number.cpu(), torch.tensor(values)[:, None])

    def of(self, name: str) -> dict[str, tuple[float, float]]:
        """Mean accuracy and 95% interval of each baseline, chance first; empty where nothing was measured."""
        if name not in self._metrics:
            return {}
        found: dict[str, Summary] = {kind: metric.summary() for kind, metric in self._metrics[name].items()}
        measured = {f"nearest mean, {kind}": (float(s.mean[0]), float(s.ci95[0])) for kind, s in found.items()}
        return {"chance": (1 / self._ways[name], 0.0), **measured}

    def as_dict(self) -> dict[str, dict[str, list[float]]]:
        """For the result of a run: set -> reference -> mean and interval."""
        return {name: {kind: list(values) for kind, values in self.of(name).items()} for name in self._metrics}


def _accuracy(features: nn.Module, batch: EpisodeBatch, task: int) -> float:
    support, query = item(batch.episodes, task)
    with torch.no_grad():
        means = class_means(features(support.x), support)
        nearest: Tensor = square_distances(features(query.x), means).argmin(-1)
    return float((nearest == query.y).float().mean())
