"""higher: `innerloop_ctx` around an SGD, as in its MAML example."""

import higher
import torch

from mamllit.core.episode import Examples
from suite.peers.torch_loop import TorchLoop
from suite.problems import Problem


class Higher(TorchLoop):
    def __init__(self, row: Problem, dtype: torch.dtype, device: str) -> None:
        super().__init__(row, dtype, device)
        self.inner = torch.optim.SGD(self.net.parameters(), lr=row.inner_lr)

    def task(self, support: Examples, query: Examples, share: float) -> None:
        second_order = not self.row.first_order
        with higher.innerloop_ctx(
            self.net, self.inner, copy_initial_weights=False, track_higher_grads=second_order
        ) as (fast, inner):  # fmt: skip
            for _ in range(self.row.inner_steps):
                inner.step(self.loss(fast(support.x), support.y))
            value = share * self.loss(fast(query.x), query.y)
            if second_order:
                value.backward()
                return
            # without the graph through the steps, the gradient at the adapted point has to be carried over by hand
            gradient = torch.autograd.grad(value, list(fast.parameters()))
            for parameter, new in zip(self.net.parameters(), gradient, strict=True):
                parameter.grad = new if parameter.grad is None else parameter.grad + new


def build(row: Problem, dtype: torch.dtype, device: str) -> Higher:
    return Higher(row, dtype, device)
