"""Trust region policy optimisation (J. Schulman et al., ICML 2015, arXiv 1502.05477) as a torch optimiser.

A step goes along the natural gradient, found by conjugate gradients on products with the curvature of the divergence, as far as
a divergence of `max_kl`, and is shortened until the loss falls within that bound. What a product, a loss and a divergence are,
the optimiser is told before each step, by `pose`: it knows nothing of policies.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Problem(Protocol):
    """What a step is made on. Both speak of the optimised parameters, as one vector [P], in their order."""

    def begin(self) -> Tensor:
        """The loss where the step begins, a scalar."""

    def product(self, vector: Tensor) -> Tensor:
        """The curvature of the divergence where the step begins, times a vector; [P]."""

    def judge(self) -> tuple[Tensor, Tensor]:
        """Loss and divergence from the beginning at the parameters as they are now; two scalars."""


class Taken(NamedTuple):
    """What became of a step: its divergence, how far the loss fell, and how often it was shortened (None: it was not taken)."""

    kl: float
    gain: float
    shortened: int | None


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, residual: float = 1e-10) -> Tensor:
    """x with product(x) = b, nearly: `iterations` steps at most, fewer where |b - product(x)|^2 falls below `residual`."""
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    squared = r @ r
    for _ in range(iterations):
        if squared < residual:
            break
        along = product(p)
        alpha = squared / (p @ along)
        x, r = x + alpha * p, r - alpha * along
        squared, before = r @ r, squared
        p = r + squared / before * p
    return x


class TrustRegion(torch.optim.Optimizer):
    """The largest step along the natural gradient that lowers the loss and keeps the divergence within `max_kl`.

    Settings are those of the MAML authors' code. Where no length of a step will do, the parameters stay exactly as they were.

    Args:
        params: what is optimised.
        max_kl: delta, the bound on the divergence.
        iterations: of conjugate gradients.
        damping: added to the diagonal of the curvature.
        backtracking: factor of the length at each try.
        tries: lengths that are tried.

    Raises:
        ValueError: for a number out of bounds.
        RuntimeError: for a step before `pose`.

    >>> import torch
    >>> from mamllit.rl import TrustRegion
    >>> class Bowl:  # loss x.x / 2 + x_0, divergence |x - begin|^2 / 2
    ...     def begin(self): return torch.tensor(2.0)
    ...     def product(self, vector): return vector
    ...     def judge(self): return x @ x / 2 + x[0], (x - torch.ones(2)).square().sum() / 2
    >>> x = torch.ones(2, requires_grad=True)
    >>> (x @ x / 2 + x[0]).backward()
    >>> optimizer = TrustRegion([x], max_kl=0.02)
    >>> optimizer.pose(Bowl())
    >>> optimizer.step()
    >>> round(optimizer.taken.kl, 4)
    0.02
    """

    def __init__(
        self,
        params: Iterable[Any],
        max_kl: float = 0.01,
        iterations: int = 10,
        damping: float = 1e-5,
        backtracking: float = 0.8,
        tries: int = 15,
    ) -> None:
        bounds = {"max_kl": max_kl > 0, "iterations": iterations >= 1, "damping": damping >= 0, "tries": tries >= 1}
        asked = {"max_kl": max_kl, "iterations": iterations, "damping": damping, "tries": tries}
        says = {"max_kl": "> 0", "iterations": ">= 1", "damping": ">= 0", "tries": ">= 1"}
        problems = [f"{name} is {asked[name]}; it must be {says[name]}" for name, good in bounds.items() if not good]
        if not 0 < backtracking < 1:
            problems.append(f"backtracking is {backtracking}; it must lie between 0 and 1")
        if problems:
            raise ValueError("; ".join(problems))
        super().__init__(params, {**asked, "backtracking": backtracking})
        if len(self.param_groups) > 1:
            raise ValueError(f"TrustRegion got {len(self.param_groups)} parameter groups; one step is for all: give it one")
        self.problem: Problem | None = None
        self.taken = Taken(0.0, 0.0, None)

    def pose(self, problem: Problem) -> None:
        """Say what the next step is made on; to be called after the gradient's samples are there, before the step."""
        self.problem = problem

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.problem is None:
            raise RuntimeError("TrustRegion needs a problem to take a step on; call pose(problem) before step()")
        with torch.no_grad():
            self._step(self.problem, self.param_groups[0])
        self.problem = None
        return loss

    def _step(self, problem: Problem, settings: dict[str, Any]) -> None:
        params = [value for value in settings["params"] if value.grad is not None]
        if not params:  # the gradient was not finite, and the update is left out
            self.taken = Taken(0.0, 0.0, None)
            return
        gradient = torch.cat([value.grad.reshape(-1) for value in params])
        begin = torch.cat([value.reshape(-1) for value in params])

        def curvature(vector: Tensor) -> Tensor:
            return problem.product(vector) + settings["damping"] * vector

        direction = conjugate_gradients(curvature, gradient, settings["iterations"])
        length = (2 * settings["max_kl"] / (direction @ curvature(direction) + 1e-8)).clamp(min=0).sqrt()
        before = problem.begin()
        for shortened in range(settings["tries"]):
            _fill(params, begin - settings["backtracking"] ** shortened * length * direction)
            loss, kl = problem.judge()
            if loss < before and kl <= settings["max_kl"]:
                self.taken = Taken(float(kl), float(before - loss), shortened)
                return
        _fill(params, begin)
        self.taken = Taken(0.0, 0.0, None)


def _fill(params: list[Tensor], vector: Tensor) -> None:
    for value, part in zip(params, vector.split([value.numel() for value in params]), strict=True):
        value.copy_(part.reshape(value.shape))
