"""Small policies and trajectories in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mamllit.methods import MAML
from mamllit.rl import GaussianPolicy, PolicyGradient, Trajectories


@pytest.fixture
def trajectories() -> Trajectories:
    """3 tasks, 4 trajectories of at most 7 steps, some ended before; 2 numbers in an observation, 2 in an action."""
    length = torch.tensor([[7, 7, 3, 1], [7, 5, 7, 7], [2, 2, 2, 7]])
    valid = (torch.arange(7) < length[..., None]).double()
    observations, actions = torch.randn(2, 3, 4, 7, 2, dtype=torch.float64)
    return Trajectories(
        observations, actions, torch.randn(3, 4, 7, dtype=torch.float64) * valid, valid, torch.arange(7.0).expand(3, 4, 7)
    )


@pytest.fixture
def make_method() -> Callable[..., MAML]:
    def make(inner: str = "log", inner_lr: float = 0.1, inner_steps: int = 1, first_order: bool = False) -> MAML:
        torch.manual_seed(0)
        policy = GaussianPolicy(2, 2, hidden=[5, 4], activation="tanh", std=0.7)
        return MAML(policy, PolicyGradient(inner), inner_lr, inner_steps, "mean", first_order).double()  # type: ignore[arg-type]

    return make


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in tensors])
