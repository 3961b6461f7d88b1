"""learn2learn: `MAML.clone()` and `adapt()`, as in its examples."""

import learn2learn
import torch

from mamllit.core.episode import Examples
from suite.peers.torch_loop import TorchLoop
from suite.problems import Problem


class Learn2Learn(TorchLoop):
    def __init__(self, row: Problem, dtype: torch.dtype, device: str) -> None:
        super().__init__(row, dtype, device)
        self.maml = learn2learn.algorithms.MAML(self.net, lr=row.inner_lr, first_order=row.first_order)

    def task(self, support: Examples, query: Examples, share: float) -> None:
        learner = self.maml.clone()
        for _ in range(self.row.inner_steps):
            learner.adapt(self.loss(learner(support.x), support.y))
        (share * self.loss(learner(query.x), query.y)).backward()


def build(row: Problem, dtype: torch.dtype, device: str) -> Learn2Learn:
    return Learn2Learn(row, dtype, device)
