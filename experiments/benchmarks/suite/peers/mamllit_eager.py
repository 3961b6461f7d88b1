"""mamllit without torch.compile: `MetaGradient`, then fused Adam, as the experiments' YAMLs have it."""

import torch
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.engine.meta_gradient import MetaGradient
from suite.problems import Problem, method, network


class Mamllit:
    """A bare loop around mamllit's step; the Trainer's share is measured by the whole runs."""

    def __init__(self, row: Problem, dtype: torch.dtype, device: str, compiled: bool) -> None:
        self.net = network(row).to(device, dtype)
        self.meta_gradient = MetaGradient(method(row, self.net), compiled=compiled)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=True)

    def prepare(self, episodes: Episode) -> Episode:
        return episodes

    def gradient(self, batch: Episode) -> dict[str, Tensor]:
        return {name.removeprefix("method.backbone."): value for name, value in self.meta_gradient(batch).gradient.items()}

    def step(self, batch: Episode) -> None:
        for parameter, value in zip(self.net.parameters(), self.meta_gradient(batch).gradient.values(), strict=True):
            parameter.grad = value
        self.optimizer.step()


def build(row: Problem, dtype: torch.dtype, device: str) -> Mamllit:
    return Mamllit(row, dtype, device, compiled=False)
