"""Policies: networks whose output is the parameters of a distribution over actions."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mamllit.backbones.mlp import ACTIVATIONS, Activation

Init = Literal["xavier", "torch"]


class GaussianHead(nn.Module):
    """Mean by a linear layer, log sigma by a vector that does not depend on the observation: [..., D] -> [..., 2 a]."""

    def __init__(self, features: int, actions: int, log_std: float) -> None:
        super().__init__()
        self.mean = nn.Linear(features, actions)
        self.log_std = nn.Parameter(torch.full((actions,), log_std))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


class GaussianPolicy(nn.Module):
    """An MLP with a Gaussian head, the policy of Finn et al. 2017, section 5.3: two hidden layers of 100 with ReLU.

    Sigma begins as `std`; the inner loop adapts log sigma, too. A departure from the authors' code (cbfinn/maml_rl): it keeps
    sigma above 1e-6, which no run here came near.

    Args:
        observations: numbers in an observation.
        actions: dimensions of an action.
        hidden: sizes of the hidden layers.
        activation: "relu" or "tanh".
        std: sigma before training.
        init: "xavier", uniform weights and zero biases as in the authors' code, or "torch", the default of `nn.Linear`, whose
            weights are about half as large. In a world that clips actions, smaller means leave the choice to the noise.

    Shape: [..., observations] -> [..., 2 * actions], mean and log sigma.

    Raises:
        ValueError: for an unknown activation or init, a size below 1, or a sigma that is not positive.

    >>> import torch
    >>> from mamllit.rl import GaussianPolicy
    >>> GaussianPolicy(observations=2, actions=2)(torch.rand(20, 100, 2)).shape
    torch.Size([20, 100, 4])
    """

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: Sequence[int] = (100, 100),
        activation: Activation = "relu",
        std: float = 1.0,
        init: Init = "xavier",
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"init is {init!r}; it must be one of {list(get_args(Init))}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {sorted(ACTIVATIONS)}")
        if min(observations, actions, *hidden) < 1:
            raise ValueError(f"observations is {observations}, actions {actions}, hidden {list(hidden)}; each must be >= 1")
        if std <= 0:
            raise ValueError(f"std is {std}; it must be > 0")
        self.observations, self.actions, self.activation = observations, actions, activation
        sizes = [observations, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, hidden, strict=False))
        self.head = GaussianHead(sizes[-1], actions, math.log(std))
        for layer in [*self.layers, self.head.mean] if init == "xavier" else []:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, [..., D]."""
        for layer in self.layers:
            x = ACTIVATIONS[self.activation](layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
