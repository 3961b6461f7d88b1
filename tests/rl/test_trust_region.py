"""The trust region on problems whose solution is known by hand."""

import pytest
import torch
from torch import Tensor

from mamllit.rl import TrustRegion
from mamllit.rl.trust_region import conjugate_gradients

METRIC = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


class Quadratic:
    """loss = slope . x + bend x.x / 2, divergence (x - begin)' M (x - begin) / 2, all at the parameters as they are."""

    def __init__(self, params: list[Tensor], bend: float = 0.0, steeper: float = 1.0) -> None:
        self.params, self.bend, self.steeper = params, bend, steeper
        self.start = self.x.clone()

    @property
    def x(self) -> Tensor:
        return torch.cat([value.detach().reshape(-1) for value in self.params])

    def begin(self) -> Tensor:
        return self.judge()[0]

    def product(self, vector: Tensor) -> Tensor:
        return METRIC @ vector

    def judge(self) -> tuple[Tensor, Tensor]:
        off = self.x - self.start
        return SLOPE @ self.x + self.bend * self.x @ self.x / 2, self.steeper * off @ METRIC @ off / 2


def parameters(gradient: Tensor = SLOPE) -> list[Tensor]:
    params = [torch.zeros(2, dtype=torch.float64, requires_grad=True), torch.zeros(1, dtype=torch.float64, requires_grad=True)]
    for value, part in zip(params, gradient.split([2, 1]), strict=True):
        value.grad = part.clone()
    return params


def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions() -> None:
    solved = conjugate_gradients(lambda v: METRIC @ v, SLOPE, 3)
    torch.testing.assert_close(METRIC @ solved, SLOPE)
    assert conjugate_gradients(lambda v: METRIC @ v, torch.zeros(3), 3).abs().max() == 0


def test_a_step_goes_along_the_natural_gradient_to_the_bound() -> None:
    params = parameters()
    optimizer = TrustRegion(params, max_kl=0.02, damping=0.0)
    optimizer.pose(problem := Quadratic(params))
    optimizer.step()
    natural = torch.linalg.solve(METRIC, SLOPE)
    torch.testing.assert_close(problem.x, -natural * (2 * 0.02 / (SLOPE @ natural)).sqrt(), rtol=1e-6, atol=1e-9)
    assert optimizer.taken.kl == pytest.approx(0.02, rel=1e-6)
    assert optimizer.taken.shortened == 0 and optimizer.taken.gain > 0


def test_a_step_is_shortened_until_the_divergence_is_within_the_bound() -> None:
    params = parameters()
    optimizer = TrustRegion(params, max_kl=0.02, damping=0.0, backtracking=0.5)
    optimizer.pose(problem := Quadratic(params, steeper=3.0))  # the true divergence is three times the predicted one
    optimizer.step()
    assert optimizer.taken.shortened == 1 and problem.judge()[1] == pytest.approx(3 * 0.02 / 4, rel=1e-6)


def test_parameters_stay_exactly_as_they_were_where_no_length_will_do() -> None:
    params = parameters(-SLOPE)  # uphill
    before = [value.detach().clone() for value in params]
    optimizer = TrustRegion(params)
    optimizer.pose(Quadratic(params))
    optimizer.step()
    assert optimizer.taken.shortened is None
    assert all(torch.equal(value, old) for value, old in zip(params, before, strict=True))


def test_a_left_out_update_moves_nothing() -> None:
    params = parameters()
    for value in params:
        value.grad = None
    optimizer = TrustRegion(params)
    optimizer.pose(Quadratic(params))
    optimizer.step(lambda: torch.tensor(1.0))
    assert all(value.abs().max() == 0 for value in params)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_kl is 0; it must be > 0; iterations is 0; it must be >= 1"):
        TrustRegion(parameters(), max_kl=0, iterations=0)
    with pytest.raises(ValueError, match=r"backtracking is 1\.0; it must lie between 0 and 1"):
        TrustRegion(parameters(), backtracking=1.0)
    with pytest.raises(ValueError, match=r"got 2 parameter groups; one step is for all"):
        TrustRegion([{"params": [value]} for value in parameters()])
    with pytest.raises(RuntimeError, match=r"call pose\(problem\) before step\(\)"):
        TrustRegion(parameters()).step()
