"""What a world is: a family of tasks, with all trajectories of all tasks acted at once.

T tasks, K trajectories of each, H steps at most, O numbers in an observation, a in an action, p in a task.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Step(NamedTuple):
    """What an action leads to: `state`, the world's own; `observation` [T, K, O]; `reward` and `done` [T, K]."""

    state: Any
    observation: Tensor
    reward: Tensor
    done: Tensor


class World(ABC):
    """A family of tasks. A world draws nothing: tasks and starts are functions of numbers that it is given.

    A trajectory has `horizon` steps, or fewer, where `done` ends it; what the world gives after that is not used.
    """

    observations: int  # O
    actions: int  # a
    horizon: int  # H
    task_names: ClassVar[tuple[str, ...]]  # of the p numbers of a task
    reset_noise: int = 0  # standard normal numbers that a start is made of
    restarts: bool = False  # a trajectory can begin anew beside others: the state is a tree of tensors [T, K, ...]

    @abstractmethod
    def tasks(self, numbers: Tensor) -> Tensor:
        """Tasks [T, p] from uniform `numbers` [T, p] in [0, 1)."""

    @abstractmethod
    def reset(self, tasks: Tensor, noise: Tensor) -> tuple[Any, Tensor]:
        """State and first observations [T, K, O] of K trajectories of each task, from `noise` [T, K, reset_noise]."""

    @abstractmethod
    def step(self, tasks: Tensor, state: Any, action: Tensor) -> Step:
        """What the actions [T, K, a] lead to."""

    def paper_tasks(self) -> Tensor:
        """The fixed tasks [T, p] that the paper's numbers were measured on.

        Raises:
            ValueError: where no paper names any.
        """
        raise ValueError(f"{type(self).__name__} has no published test tasks; leave the protocol 'paper' out")

    def places(self, observations: Tensor) -> Tensor | None:
        """Where in the plane the trajectories are, [..., 2], for a figure; None where there is no such place."""
        return None

    def frames(self, task: Tensor, start: Tensor, actions: Tensor) -> Iterator[np.ndarray]:
        """Pictures [height, width, 3] of bytes of a trajectory in a `task` [p], from the noise `start`, by `actions` [n, a].

        Raises:
            ValueError: where a world cannot draw itself.
        """
        raise ValueError(f"{type(self).__name__} draws no pictures; leave --video out")


class Revealed(World):
    """A world that tells the policy its task, behind each observation: for the paper's oracle.

    Args:
        world: what is acted in.

    >>> from mamllit.rl import Navigation, Revealed
    >>> Revealed(Navigation()).observations
    4
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.observations = world.observations + len(world.task_names)
        self.actions, self.horizon, self.reset_noise = world.actions, world.horizon, world.reset_noise
        self.restarts = world.restarts
        self.task_names = world.task_names  # type: ignore[misc]

    def tasks(self, numbers: Tensor) -> Tensor:
        return self.world.tasks(numbers)

    def paper_tasks(self) -> Tensor:
        return self.world.paper_tasks()

    def reset(self, tasks: Tensor, noise: Tensor) -> tuple[Any, Tensor]:
        state, observation = self.world.reset(tasks, noise)
        return state, _told(observation, tasks)

    def step(self, tasks: Tensor, state: Any, action: Tensor) -> Step:
        step = self.world.step(tasks, state, action)
        return step._replace(observation=_told(step.observation, tasks))

    def places(self, observations: Tensor) -> Tensor | None:
        return self.world.places(observations[..., : self.world.observations])

    def frames(self, task: Tensor, start: Tensor, actions: Tensor) -> Iterator[np.ndarray]:
        return self.world.frames(task, start, actions)


def _told(observation: Tensor, tasks: Tensor) -> Tensor:
    return torch.cat([observation, tasks[:, None].expand(-1, observation.shape[1], -1)], -1)
