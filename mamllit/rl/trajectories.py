"""Acting: trajectories of many tasks at once, whose noise is a function of the task and of how often it was adapted to."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mamllit.rl.distributions import Distribution
from mamllit.rl.noise import Noise
from mamllit.rl.worlds.base import World

NAMED = 5  # tasks that a message lists
Act = Callable[[Tensor], Tensor]  # observations [T, K, O] -> outputs [T, K, d]


class Trajectories(NamedTuple):
    """K trajectories of each of T tasks: `observations` [T, K, H, O], `actions` [T, K, H, a], `rewards` and `valid` [T, K, H].

    `valid` is 1 up to the step that ended a trajectory, then 0; rewards after it are 0.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    valid: Tensor

    @property
    def returns(self) -> Tensor:
        """The sum of the rewards of each trajectory, without discount, [T, K]."""
        return self.rewards.sum(-1)


@torch.no_grad()
def rollout(
    world: World, tasks: Tensor, noise: Noise, phase: int, trajectories: int, act: Act, distribution: Distribution
) -> Trajectories:
    """Act in `tasks` [T, p] with the policy `act`.

    Args:
        noise: of these tasks; with `phase`, the number of adaptations before, it decides starts and actions.
        trajectories: K.
        distribution: what the policy's outputs mean.
    """
    starts = noise.normal(2 * phase, (trajectories, world.reset_noise)).to(tasks)
    moves = noise.normal(2 * phase + 1, (world.horizon, trajectories, world.actions)).to(tasks)
    state, observation = world.reset(tasks, starts)
    valid = tasks.new_ones(len(tasks), trajectories)
    steps: list[tuple[Tensor, ...]] = []
    for t in range(world.horizon):
        action = distribution.sample(act(observation), moves[:, t])
        step = world.step(tasks, state, action)
        steps.append((observation, action, step.reward * valid, valid))
        state, observation = step.state, step.observation
        valid = valid * ~step.done
    return Trajectories(*(torch.stack(parts, 2) for parts in zip(*steps, strict=True)))


def diverged(found: Trajectories) -> Tensor:
    """Which tasks, [T], have an observation, action or reward that is not finite."""
    return ~(found.observations.sum((1, 2, 3)) + found.actions.sum((1, 2, 3)) + found.rewards.sum((1, 2))).isfinite()


def check_finite(found: Trajectories, tasks: Tensor, world: World) -> None:
    """Raise `FloatingPointError`, which names the tasks, where `diverged`."""
    if not (bad := diverged(found)).any():
        return
    names = [
        ", ".join(f"{name} {value:g}" for name, value in zip(world.task_names, task.tolist(), strict=True))
        for task in tasks[bad][:NAMED]
    ]
    raise FloatingPointError(
        f"observations, actions or rewards in {type(world).__name__} are not finite in {int(bad.sum())} of {len(tasks)} tasks: "
        f"{'; '.join(names)}{' and others' * (int(bad.sum()) > NAMED)}. Take a smaller inner_lr or max_kl"
    )
