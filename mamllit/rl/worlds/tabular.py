"""A Markov decision process small enough to enumerate: what estimators are checked against."""

import itertools
from typing import Any

import torch
from torch import Tensor

from mamllit.rl.worlds.base import Step, World


class Tabular(World):
    """S states, A actions, a fixed table of transitions; a task is a reward for each state and action, each in [-1, 1].

    The observation is the state's unit vector, the action its number (see `Categorical`), the first state is 0.

    Args:
        states, choices: S and A.
        horizon: steps of a trajectory.
        seed: of the transitions.

    Raises:
        ValueError: for a number below its bound.

    >>> import torch
    >>> from mamllit.rl import Tabular
    >>> world = Tabular(states=2, choices=2, horizon=2)
    >>> world.value(torch.ones(4), torch.zeros(2, 2)).item()  # a reward of 1 in each of two steps
    2.0
    """

    actions = 1
    reset_noise = 0

    def __init__(self, states: int = 2, choices: int = 2, horizon: int = 2, seed: int = 0) -> None:
        bounds = {"states": (states, 1), "choices": (choices, 2), "horizon": (horizon, 1)}
        if problems := [f"{name} is {value}; it must be >= {low}" for name, (value, low) in bounds.items() if value < low]:
            raise ValueError("; ".join(problems))
        self.observations, self.choices, self.horizon = states, choices, horizon
        self.task_names = tuple(f"reward_{s}_{a}" for s, a in itertools.product(range(states), range(choices)))  # type: ignore[misc]
        generator = torch.Generator().manual_seed(seed)
        self.successor = torch.randint(states, (states, choices), generator=generator)

    def tasks(self, numbers: Tensor) -> Tensor:
        return 2 * numbers - 1

    def reset(self, tasks: Tensor, noise: Tensor) -> tuple[Any, Tensor]:
        state = torch.zeros(noise.shape[:2], dtype=torch.int64, device=tasks.device)
        return state, self._unit(state, tasks)

    def step(self, tasks: Tensor, state: Any, action: Tensor) -> Step:
        choice = action[..., 0].long()
        reward = tasks.gather(1, (state * self.choices + choice).flatten(1)).reshape(state.shape)
        state = self.successor.to(state.device)[state, choice]
        return Step(state, self._unit(state, tasks), reward, torch.zeros_like(state, dtype=torch.bool))

    def _unit(self, state: Tensor, like: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(state, self.observations).to(like.dtype)

    def value(self, task: Tensor, logits: Tensor) -> Tensor:
        """The exact mean return of a policy with these logits [S, A] in one task [S A]; differentiable."""
        reward, policy = task.reshape(self.observations, self.choices), logits.softmax(-1)
        value = logits.new_zeros(self.observations)
        for _ in range(self.horizon):
            value = (policy * (reward + value[self.successor])).sum(-1)
        return value[0]
