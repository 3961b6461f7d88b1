"""2D navigation, the first of the MAML paper's reinforcement learning tasks (Finn et al. 2017, section 5.3)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mamllit.rl.worlds.base import Step, World

STEP, NEAR, PAPER_TASKS = 0.1, 0.01, 40
SIDE = 320  # pixels of a frame


class Navigation(World):
    """A point in the plane that is to go to a goal it is not told: goal ~ U([-0.5, 0.5]^2), start at 0, 100 steps.

    The observation is the position. An action in [-1, 1]^2, clipped to that, is a movement of at most 0.1 in each direction.
    The reward is minus the distance to the goal after the move: so the authors' code has it, where the paper's text has the
    squared distance. A trajectory ends within 0.01 of the goal in both directions, as in their code.

    Args:
        horizon: steps of a trajectory.

    Raises:
        ValueError: for a horizon below 1.

    >>> import torch
    >>> from mamllit.rl import Navigation
    >>> world, goal = Navigation(), torch.tensor([[0.3, 0.4]])
    >>> state, observation = world.reset(goal, torch.zeros(1, 5, 0))
    >>> round(world.step(goal, state, torch.zeros(1, 5, 2)).reward[0, 0].item(), 6)
    -0.5
    """

    observations = actions = 2
    restarts = True
    task_names = ("goal_x", "goal_y")

    def __init__(self, horizon: int = 100) -> None:
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; it must be >= 1")
        self.horizon = horizon

    def tasks(self, numbers: Tensor) -> Tensor:
        return numbers - 0.5

    def paper_tasks(self) -> Tensor:
        """The authors' 40 goals: NumPy's legacy generator with seed 1, as in their `sample_goals`."""
        return torch.from_numpy(np.random.RandomState(1).uniform(-0.5, 0.5, size=(PAPER_TASKS, 2))).float()

    def reset(self, tasks: Tensor, noise: Tensor) -> tuple[Any, Tensor]:
        position = tasks.new_zeros(*noise.shape[:2], 2)
        return position, position

    def step(self, tasks: Tensor, state: Any, action: Tensor) -> Step:
        position = state + STEP * action.clamp(-1, 1)
        off = position - tasks[:, None]
        return Step(position, position, -off.square().sum(-1).sqrt(), (off.abs() < NEAR).all(-1))

    def frames(self, task: Tensor, start: Tensor, actions: Tensor) -> Iterator[np.ndarray]:
        def pixel(place: Tensor) -> tuple[float, float]:
            return SIDE * (0.5 + place[0].item() / 1.6), SIDE * (0.5 - place[1].item() / 1.6)

        picture = Image.new("RGB", (SIDE, SIDE), "white")
        canvas, places = ImageDraw.Draw(picture), [torch.zeros(2)]
        x, y = pixel(task)
        canvas.ellipse((x - 7, y - 7, x + 7, y + 7), fill="#c0392b")
        for action in actions:
            places.append(places[-1] + STEP * action.clamp(-1, 1))
            canvas.line((pixel(places[-2]), pixel(places[-1])), fill="#2e86c1", width=2)
            yield np.asarray(picture).copy()

    def places(self, observations: Tensor) -> Tensor | None:
        return observations
