"""ProMP's optimiser: several steps of Adam, and a clipped surrogate worked out by hand."""

import math

import pytest
import torch

from mamllit.rl import Happened, PolicyGradient, ProximalAdam, pack


def test_a_ratio_counts_up_to_the_bound_where_that_is_better() -> None:
    """Ratios of 1.5 and 0.5, each with an advantage of 1 and of -1: min(1.5, 1.2), min(-1.5, -1.2), 0.5, min(-0.5, -0.8)."""
    output = torch.zeros(4, 1, 2)  # a standard normal
    log_prob = -0.5 * math.log(2 * math.pi)
    old = log_prob - torch.tensor([1.5, 1.5, 0.5, 0.5]).log()[:, None]
    advantage = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = pack(Happened(torch.zeros(4, 1, 1), advantage, old, torch.ones(4, 1)))
    assert PolicyGradient().surrogate(output, y, clip=0.2).item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert PolicyGradient().surrogate(output, y).item() == pytest.approx(0.0, abs=1e-6)


def test_the_gradient_of_each_epoch_is_asked_for_where_the_last_has_led() -> None:
    x = torch.ones(1, requires_grad=True)
    seen: list[float] = []

    class Bowl:
        def proximal(self, clip: float, inner_kl: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
            assert (clip, inner_kl) == (0.2, 0.1)
            seen.append(x.item())
            return x.square().sum().detach(), [2 * x.detach()]

    (x**2).sum().backward()
    optimizer = ProximalAdam([x], lr=0.01, epochs=3, clip=0.2, inner_kl=0.1)
    optimizer.pose(Bowl())
    assert optimizer.step(lambda: torch.tensor(7.0)) == 7.0
    assert seen == pytest.approx([0.99, 0.98], abs=1e-4)
    assert x.item() == pytest.approx(0.97, abs=1e-4)


def test_what_is_refused() -> None:
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=r"epochs is 0, clip 0\.0, inner_kl -1; they must be >= 1, > 0 and >= 0"):
        ProximalAdam([x], epochs=0, clip=0.0, inner_kl=-1)
    x.sum().backward()
    with pytest.raises(RuntimeError, match=r"call pose\(problem\) before step\(\)"):
        ProximalAdam([x]).step()
