"""What the PyTorch peers share: a loop over the tasks with one backward per task, as their examples have it, and Adam."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import count, item
from suite.networks import loss, peer_network
from suite.problems import Problem


class TorchLoop(ABC):
    """A peer that adds one task after the other to the `.grad` of `self.net`'s parameters."""

    def __init__(self, row: Problem, dtype: torch.dtype, device: str) -> None:
        self.row = row
        self.net = peer_network(row).to(device, dtype)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    @abstractmethod
    def task(self, support: Examples, query: Examples, share: float) -> None:
        """Adapt on `support` and back-propagate `share` times the loss on `query`."""

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return loss(self.row, output, y)

    def prepare(self, episodes: Episode) -> list[Episode]:
        return [item(episodes, task) for task in range(count(episodes))]

    def backward(self, batch: list[Episode]) -> None:
        self.optimizer.zero_grad()
        for support, query in batch:
            self.task(support, query, 1 / len(batch))

    def gradient(self, batch: list[Episode]) -> dict[str, Tensor]:
        self.backward(batch)
        return {name: value.grad.clone() for name, value in self.net.named_parameters() if value.grad is not None}

    def step(self, batch: list[Episode]) -> None:
        self.backward(batch)
        self.optimizer.step()
