"""Any Gymnasium environment of your own as a world: say how to make one, and how to set its task.

pip install "mamllit[rl]"
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mamllit.rl.worlds.base import Step, World

try:
    import gymnasium
except ImportError as error:
    raise ImportError('a world of Gymnasium environments needs Gymnasium: pip install "mamllit[rl]"') from error


class GymWorld(World):
    """T x K environments with the API of `gymnasium.Env`, one after another; subclasses say `make`, `set_task`, `tasks`.

    Actions in [-1, 1] are scaled to the bounds of the action space, and clipped to them. An environment is reset with a seed
    that is made of the trajectory's noise. Termination ends a trajectory; truncation does, too.

    Args:
        horizon: steps of a trajectory; give the environment no shorter limit.

    Raises:
        ValueError: for a horizon below 1, or spaces that are no bounded or unbounded boxes of one dimension.

    >>> import gymnasium, torch
    >>> from mamllit.rl.worlds.gym import GymWorld
    >>> class Pendulum(GymWorld):  # the task is how heavy it is
    ...     task_names = ("mass",)
    ...     def make(self): return gymnasium.make("Pendulum-v1")
    ...     def set_task(self, env, task): env.unwrapped.m = task[0]
    ...     def tasks(self, numbers): return 0.5 + numbers
    >>> world = Pendulum(horizon=50)
    >>> world.reset(torch.tensor([[0.7], [1.2]]), torch.randn(2, 3, 1))[1].shape
    torch.Size([2, 3, 3])
    """

    reset_noise = 1

    def __init__(self, horizon: int = 200) -> None:
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; it must be >= 1")
        self.horizon = horizon
        self._environments = [self.make()]
        first = self._environments[0]
        spaces = {"observation_space": first.observation_space, "action_space": first.action_space}
        for name, space in spaces.items():
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise ValueError(f"the {name} is {space}; it must be a one-dimensional Box (FlattenObservation makes one)")
        box = spaces["action_space"]
        if not box.is_bounded():  # type: ignore[attr-defined]
            raise ValueError(f"the action_space is {box}; it must have bounds, to which actions in [-1, 1] are scaled")
        self.observations, self.actions = (int(space.shape[0]) for space in spaces.values())
        self._low, self._high = box.low, box.high  # type: ignore[attr-defined]

    @abstractmethod
    def make(self) -> Any:
        """A new environment."""

    @abstractmethod
    def set_task(self, env: Any, task: list[float]) -> None:
        """Give an environment its task, before it is reset."""

    def reset(self, tasks: Tensor, noise: Tensor) -> tuple[Any, Tensor]:
        seeds = noise[..., 0].float().contiguous().view(torch.int32).abs().cpu()
        while len(self._environments) < seeds.numel():
            self._environments.append(self.make())
        found = []
        per_task = seeds.shape[1]
        for i, seed in enumerate(seeds.flatten().tolist()):
            self.set_task(self._environments[i], tasks[i // per_task].tolist())
            found.append(self._environments[i].reset(seed=seed)[0])
        state = np.ones(len(found), dtype=bool), np.asarray(found, dtype=np.float64)
        return state, torch.from_numpy(state[1]).to(tasks).unflatten(0, seeds.shape)

    def step(self, tasks: Tensor, state: Any, action: Tensor) -> Step:
        alive, observations = state
        scaled = (action.clamp(-1, 1).flatten(0, 1).cpu().numpy() + 1) / 2 * (self._high - self._low) + self._low
        rewards, done, observations = np.zeros(len(alive)), ~alive, observations.copy()
        for i in alive.nonzero()[0]:
            observations[i], rewards[i], terminated, truncated, _ = self._environments[i].step(scaled[i].astype(np.float32))
            done[i] = terminated or truncated
        shape = action.shape[:2]
        parts = (torch.from_numpy(value).to(tasks.device).unflatten(0, shape) for value in (observations, rewards, done))
        observation, reward, ended = parts
        return Step((alive & ~done, observations), observation.to(tasks.dtype), reward.to(tasks.dtype), ended)
