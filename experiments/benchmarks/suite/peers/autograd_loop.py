"""MAML as one writes it without a library: `functional_call` and `torch.autograd.grad(create_graph=True)`."""

import torch
from torch.func import functional_call

from mamllit.core.episode import Examples
from suite.peers.torch_loop import TorchLoop
from suite.problems import Problem


class Autograd(TorchLoop):
    def task(self, support: Examples, query: Examples, share: float) -> None:
        fast = dict(self.net.named_parameters())
        for _ in range(self.row.inner_steps):
            value = self.loss(functional_call(self.net, fast, (support.x,)), support.y)
            gradient = torch.autograd.grad(value, list(fast.values()), create_graph=not self.row.first_order)
            fast = {name: p - self.row.inner_lr * g for (name, p), g in zip(fast.items(), gradient, strict=True)}
        (share * self.loss(functional_call(self.net, fast, (query.x,)), query.y)).backward()


def build(row: Problem, dtype: torch.dtype, device: str) -> Autograd:
    return Autograd(row, dtype, device)
