"""Episodes one after another under plain autograd, for methods that `torch.func` cannot transform.

`Looped` makes the meta-gradient of such a method, `each` stands in for `vmap` where it is evaluated.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.core.tree import count, item
from mamllit.engine.stages import MetaStep
from mamllit.methods.base import Method

Key = TypeVar("Key", bound=Hashable)


class Looped:
    """Mean loss, logs and gradient over the episodes, one graph at a time; `trained` are the meta-parameters by name."""

    def __init__(self, method: Method, trained: Mapping[str, Tensor]) -> None:
        self.method, self.trained = method, dict(trained)

    def __call__(self, episodes: Episode) -> MetaStep:
        losses: list[Tensor] = []
        logs: dict[str, list[Tensor]] = {}
        gradient = {name: torch.zeros_like(value) for name, value in self.trained.items()}
        tasks = count(episodes)
        for task in range(tasks):
            with torch.enable_grad():
                loss, logged = self.method.meta_loss(item(episodes, task))
                own = torch.autograd.grad(loss, list(self.trained.values()), allow_unused=True, materialize_grads=True)
            losses.append(loss.detach())
            for name, value in logged.items():
                logs.setdefault(name, []).append(value.detach())
            for total, value in zip(gradient.values(), own, strict=True):
                total += value / tasks
        means = {name: torch.stack(values).mean() for name, values in logs.items()}
        return MetaStep(torch.stack(losses).mean(), means, gradient)


def each(one: Callable[[Episode], dict[Key, Tensor]]) -> Callable[[Episode], dict[Key, Tensor]]:
    """What `vmap(one)` would be: `one` of every episode of a batch, each result stacked."""

    def run(episodes: Episode) -> dict[Key, Tensor]:
        found = [one(item(episodes, task)) for task in range(count(episodes))]
        return {key: torch.stack([values[key] for values in found]) for key in found[0]}

    return run
