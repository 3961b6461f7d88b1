"""TorchOpt: its differentiable optimiser `MetaSGD`, the network put back after each task, as in its MAML example."""

import torch
import torchopt

from mamllit.core.episode import Examples
from suite.peers import Unsupported
from suite.peers.torch_loop import TorchLoop
from suite.problems import Problem


class TorchOpt(TorchLoop):
    def __init__(self, row: Problem, dtype: torch.dtype, device: str) -> None:
        super().__init__(row, dtype, device)
        self.inner = torchopt.MetaSGD(self.net, lr=row.inner_lr)

    def task(self, support: Examples, query: Examples, share: float) -> None:
        net = torchopt.extract_state_dict(self.net, by="reference", detach_buffers=True)
        inner = torchopt.extract_state_dict(self.inner, by="reference")
        for _ in range(self.row.inner_steps):
            self.inner.step(self.loss(self.net(support.x), support.y))
        (share * self.loss(self.net(query.x), query.y)).backward()
        torchopt.recover_state_dict(self.net, net)
        torchopt.recover_state_dict(self.inner, inner)


def build(row: Problem, dtype: torch.dtype, device: str) -> TorchOpt:
    if row.first_order:
        raise Unsupported("TorchOpt's MetaSGD has no first-order option")
    return TorchOpt(row, dtype, device)
