"""Acting and adapting in turn: the trajectories that an outer step uses, and the returns that an evaluation measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mamllit.core.episode import Examples
from mamllit.core.inner_loop import Params
from mamllit.core.tree import count, take, tree_map, vmap
from mamllit.rl.advantages import advantages
from mamllit.rl.noise import Noise
from mamllit.rl.objective import Happened, PolicyGradient, pack
from mamllit.rl.trajectories import Trajectories, check_finite, diverged, rollout
from mamllit.rl.worlds import World

ROWS = 2**13  # steps of the trajectories that run through the network at once: more leave the cache


@runtime_checkable
class StepByStep(Protocol):
    """A method whose inner steps can be made one at a time, each on trajectories of the current policy."""

    objective: Any

    def start(self, ways: int) -> Params:
        """The state before any step."""

    def step(self, state: Params, support: Examples) -> Params:
        """The state after one more inner step."""

    def predict(self, state: Params, x: Tensor) -> Tensor:
        """The policy's output."""


@dataclass(frozen=True)
class Credit:
    """How rewards become advantages: the discount gamma and the lambda of generalised advantage estimation."""

    discount: float = 0.99
    gae_lambda: float = 1.0


class Practice(NamedTuple):
    """What T tasks gathered in n inner steps: the `supports` of the steps, [T, K, H, ...] each, and the `query`; the outputs
    [T, K, H, d] of the policies that acted, `before` in each support and `outputs` in the query; mean `returns` [T, n + 1]
    after 0, ..., n steps; the `last` trajectories."""

    supports: list[Examples]
    query: Examples
    before: list[Tensor]
    outputs: Tensor
    returns: Tensor
    last: Trajectories


def chunks(*trees: Any, rows: int = ROWS) -> list[tuple[Any, ...]]:
    """Some tasks at a time of trees with leading T, as many as have about `rows` steps; the first holds trajectories."""
    per_task = max(int(trees[0].x.shape[1:3].numel()), 1)
    size = max(rows // per_task, 1)
    return [tuple(take(tree, i, i + size) for tree in trees) for i in range(0, count(trees[0]), size)]


def acting(method: StepByStep, states: Params | None) -> Callable[[Tensor], Tensor]:
    """The policies of T tasks, observations [T, K, O] -> outputs [T, K, d]; None: the one that is not adapted yet."""
    if states is None:
        shared = method.start(1)
        return lambda observation: method.predict(shared, observation.flatten(0, 1)).unflatten(0, observation.shape[:2])
    own = vmap(method.predict)
    return lambda observation: own(states, observation)


def act(
    method: StepByStep,
    world: World,
    tasks: Tensor,
    noise: Noise,
    phase: int,
    trajectories: int,
    states: Params | None,
    refill: bool = False,
) -> Trajectories:
    """K trajectories in each of the `tasks` [T, p] after `phase` inner steps, by the policies `states`."""
    objective: PolicyGradient = method.objective
    return rollout(world, tasks, noise, phase, trajectories, acting(method, states), objective.distribution, refill)


def examples(method: StepByStep, found: Trajectories, states: Params | None, credit: Credit) -> tuple[Examples, Tensor]:
    """Trajectories as examples [T, K, H, ...] of each task, and the outputs [T, K, H, d] of the policies that acted.

    Their log-probabilities are computed here anew: products of other shapes than those while acting differ in the last bits,
    and the ratio to them must be 1.
    """
    worth = advantages(found, credit.discount, credit.gae_lambda)
    blank = Examples(found.observations, found.observations)
    parts = chunks(blank, *(() if states is None else (states,)))
    outputs = torch.cat([acting(method, own[0] if own else None)(part.x) for part, *own in parts])
    old = method.objective.distribution.log_prob(outputs, found.actions)
    return Examples(found.observations, pack(Happened(found.actions, worth, old, found.valid))), outputs


def adapted(method: StepByStep, states: Params | None, support: Examples, share: float = 1.0) -> Params:
    """The states of T tasks after one more inner step, or after a `share` of it."""
    if states is None:
        shared, run = method.start(1), vmap(method.step, in_dims=(None, 0))
        found = [run(shared, part) for (part,) in chunks(support)]
    else:
        found = [vmap(method.step)(own, part) for part, own in chunks(support, states)]
    new = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    if share == 1.0:
        return new
    old = method.start(1) if states is None else states  # a gradient step with a share of the step size
    return {name: old[name] + share * (value - old[name]) for name, value in new.items()}


@torch.no_grad()
def practise(
    method: StepByStep,
    world: World,
    tasks: Tensor,
    noise: Noise,
    trajectories: Sequence[int],
    credit: Credit,
    shares: Sequence[float] = (1.0,),
    strict: bool = True,
    refill: bool = False,
) -> Practice:
    """Act, adapt, act again, ...: with n + 1 numbers of `trajectories` there are n inner steps.

    Args:
        trajectories: K of each phase.
        shares: by how much of its step size each inner step goes, the last one for all that follow.
        refill: see `mamllit.rl.trajectories.rollout`.
        strict: refuse numbers that are not finite; else the returns of such a task are nan, and the others go on.

    Raises:
        FloatingPointError: where `strict`; it names the tasks.
    """
    supports: list[Examples] = []
    acted: list[Tensor] = []
    returns: list[Tensor] = []
    states: Params | None = None
    for phase, k in enumerate(trajectories):
        if phase:
            states = adapted(method, states, supports[-1], shares[min(phase, len(shares)) - 1])
        last = act(method, world, tasks, noise, phase, k, states, refill)
        if strict:
            check_finite(last, tasks, world)
        bad = diverged(last)
        returns.append(last.returns.masked_fill(bad, float("nan")))
        if bad.any():
            last = Trajectories(*(value.masked_fill(bad.reshape(-1, *(1,) * (value.dim() - 1)), 0.0) for value in last))
        found, outputs = examples(method, last, states, credit)
        supports.append(found)
        acted.append(outputs)
    return Practice(supports[:-1], supports[-1], acted[:-1], acted[-1], torch.stack(returns, 1), last)


def first_trajectory(world: World, noise: Noise, phase: int, trajectories: int, found: Trajectories) -> tuple[Tensor, Tensor]:
    """The first task's first trajectory of those `found` after `phase` inner steps, on the CPU: the noise of its start
    [reset_noise], and its actions [n, a]; what `World.frames` draws."""
    start = noise.normal(2 * phase, (trajectories, world.reset_noise))[0, 0]
    return start.cpu(), found.actions[0, 0, : int(found.first[0, 0].sum())].cpu()


def thinned(part: Examples, fraction: float, whole: bool, offset: int) -> Examples:
    """About a `fraction` of the steps of each trajectory, evenly spaced; or, `whole`, so many of the trajectories."""
    if fraction >= 1:
        return part
    if whole:
        keep = max(round(fraction * part.x.shape[1]), 1)
        return tree_map(lambda value: value[:, :keep], part)
    stride = max(round(1 / fraction), 1)
    first = offset % min(stride, part.x.shape[2])
    return tree_map(lambda value: value[:, :, first::stride], part)
