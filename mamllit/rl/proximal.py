"""ProMP's outer step (J. Rothfuss et al.: ProMP: Proximal Meta-Policy Search, ICLR 2019, arXiv 1810.06784) as an optimiser.

A few steps of Adam on the same trajectories, with a clipped surrogate that stops caring for actions whose probability has
changed by more than `clip`, and a penalty on how far the policy before adapting moves. No curvature, no line search.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Proximal(Protocol):
    """What a step is made on."""

    def proximal(self, clip: float, inner_kl: float) -> tuple[Tensor, Sequence[Tensor]]:
        """Clipped loss at the parameters as they are now, and its gradient in each of them."""


class ProximalAdam(torch.optim.Adam):
    """Adam that makes `epochs` steps on what the first gradient was taken from; the defaults are the authors'.

    The first step is on the gradient that is there, where nothing is clipped and the penalty is flat.

    Args:
        params, lr: as of Adam.
        epochs: steps on the same trajectories.
        clip: the largest change of a ratio that counts.
        inner_kl: weight of the divergence of the policies that acted before adapting.

    Raises:
        ValueError: for a number out of bounds.
        RuntimeError: for a step before `pose`.

    >>> import torch
    >>> from mamllit.rl import ProximalAdam
    >>> class Slope:
    ...     def proximal(self, clip, inner_kl): return x.sum(), [torch.ones(2)]
    >>> x = torch.zeros(2, requires_grad=True)
    >>> x.sum().backward()
    >>> optimizer = ProximalAdam([x], lr=0.1, epochs=3)
    >>> optimizer.pose(Slope())
    >>> optimizer.step()
    >>> [round(value, 4) for value in x.tolist()]
    [-0.3, -0.3]
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, epochs: int = 5, clip: float = 0.3, inner_kl: float = 5e-4
    ) -> None:
        if epochs < 1 or clip <= 0 or inner_kl < 0:
            raise ValueError(f"epochs is {epochs}, clip {clip}, inner_kl {inner_kl}; they must be >= 1, > 0 and >= 0")
        super().__init__(params, lr=lr)
        self.epochs, self.clip, self.inner_kl = epochs, clip, inner_kl
        self.problem: Proximal | None = None

    def pose(self, problem: Proximal) -> None:
        """Say what the next step is made on; to be called after the gradient's samples are there, before the step."""
        self.problem = problem

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = super().step(closure)
        if self.problem is None:
            raise RuntimeError("ProximalAdam needs a problem to take a step on; call pose(problem) before step()")
        params = [value for group in self.param_groups for value in group["params"]]
        for _ in range(self.epochs - 1):
            _, gradient = self.problem.proximal(self.clip, self.inner_kl)
            for value, part in zip(params, gradient, strict=True):
                value.grad = part
            super().step()
        self.problem = None
        return loss
