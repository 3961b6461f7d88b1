"""Acting: trajectories of many tasks at once, whose noise is a function of the task and of how often it was adapted to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamllit.core.tree import flatten, unflatten
from mamllit.rl.distributions import Distribution
from mamllit.rl.noise import Noise
from mamllit.rl.worlds.base import World

NAMED = 5  # tasks that a message lists
Act = Callable[[Tensor], Tensor]  # observations [T, K, O] -> outputs [T, K, d]


class Trajectories(NamedTuple):
    """K rows of H steps of each of T tasks: `observations` [T, K, H, O], `actions` [T, K, H, a], the rest [T, K, H].

    A row holds one trajectory, or several in turn. `clock` counts the steps since a trajectory began. `valid` is 0 for steps
    that belong to none: after the end of a row's only trajectory, or in one that the end of the row cut off; its rewards are 0.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    valid: Tensor
    clock: Tensor

    @property
    def continued(self) -> Tensor:
        """Which steps are followed by another one of the same trajectory, [T, K, H], 1 or 0."""
        follows = (self.clock[..., 1:] > 0) * self.valid[..., 1:]
        return torch.cat([follows, torch.zeros_like(self.valid[..., :1])], -1)

    @property
    def first(self) -> Tensor:
        """The steps of each row's first trajectory, [T, K, H], 1 or 0."""
        return self.valid * ((self.clock == 0).cumsum(-1) == 1)

    @property
    def returns(self) -> Tensor:
        """The mean over a task's trajectories of the sum of their rewards, without discount, [T]."""
        return self.rewards.sum((1, 2)) / self._count

    @property
    def finished(self) -> Tensor:
        """The share of a task's trajectories that ended before the horizon, [T]."""
        whole = self.first[..., -1].sum(1)
        return 1 - whole / self._count

    @property
    def _count(self) -> Tensor:
        return ((self.clock == 0) * self.valid).sum((1, 2))


@torch.no_grad()
def rollout(
    world: World,
    tasks: Tensor,
    noise: Noise,
    phase: int,
    trajectories: int,
    act: Act,
    distribution: Distribution,
    refill: bool = False,
) -> Trajectories:
    """Act in `tasks` [T, p] with the policy `act`.

    Args:
        noise: of these tasks; with `phase`, the number of adaptations before, it decides starts and actions.
        trajectories: K.
        distribution: what the policy's outputs mean.
        refill: where a trajectory ends early another one begins in its row, as long as there are steps left; for a world that
            `restarts`.
    """
    starts = noise.normal(2 * phase, (world.horizon if refill else 1, trajectories, world.reset_noise)).to(tasks)
    moves = noise.normal(2 * phase + 1, (world.horizon, trajectories, world.actions)).to(tasks)
    state, observation = world.reset(tasks, starts[:, 0])
    valid = tasks.new_ones(len(tasks), trajectories)
    clock = torch.zeros_like(valid)
    steps: list[tuple[Tensor, ...]] = []
    ended: list[Tensor] = []
    for t in range(world.horizon):
        action = distribution.sample(act(observation), moves[:, t])
        step = world.step(tasks, state, action)
        steps.append((observation, action, step.reward * valid, valid, clock))
        state, observation = step.state, step.observation
        clock = clock + 1
        if refill:
            ended.append(step.done)
            if t + 1 < world.horizon and step.done.any():
                anew = world.reset(tasks, starts[:, t + 1])
                state, observation = _where(step.done, anew, (state, observation))
                clock = clock.masked_fill(step.done, 0.0)
        else:
            valid = valid * ~step.done
    found = Trajectories(*(torch.stack(parts, 2) for parts in zip(*steps, strict=True)))
    return _without_cut_off(found, torch.stack(ended, 2)) if refill else found


def _where(choice: Tensor, one: Any, other: Any) -> Any:
    """Leaves of two trees with leading [T, K]: those of `one` where `choice`."""
    (new, structure), (old, _) = flatten(one), flatten(other)
    pairs = zip(new, old, strict=True)
    return unflatten(structure, [torch.where(choice.reshape(*choice.shape, *(1,) * (a.dim() - 2)), a, b) for a, b in pairs])


def _without_cut_off(found: Trajectories, ended: Tensor) -> Trajectories:
    """Without what the end of a row cut off, as in the authors' sampler; a row's first trajectory has had its steps."""
    ends_later = ended.flip(-1).cummax(-1).values.flip(-1)
    valid = (ends_later | (found.first > 0)).to(found.valid)
    return found._replace(valid=valid, rewards=found.rewards * valid)


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
        f"{'; '.join(names)}{' and others' * (int(bad.sum()) > NAMED)}. Use a smaller inner_lr or max_kl"
    )
