"""What a meta-learning method is: a module with three verbs, written for one episode.

`adapt(support)` learns a task, `predict(state, x)` uses what was learned, `meta_loss(episode)` is what meta-training
minimises. A method keeps nothing on `self` between verbs, so that a batch of episodes can be vectorised, chunked or looped
by `mamllit.engine.meta_gradient` without the method knowing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mamllit.backbones import BatchStatNorm
from mamllit.core.episode import Episode, Examples
from mamllit.objectives import Objective

State = Any
Predictor = Callable[[State, Episode], Tensor]  # the output for the query of an episode at an adapted state


class Method(nn.Module, ABC):
    """Base of every method; its parameters are the meta-parameters.

    `optimizer_groups` names, by shell patterns, the parameters that get a group of their own in the meta-optimiser, with the
    settings that differ there (learned step sizes without weight decay, say).
    """

    objective: Objective
    optimizer_groups: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    vectorised: ClassVar[bool] = True  # False where the verbs cannot run under `torch.func.vmap`: episodes then run one by one

    counted: ClassVar[str] = "gradient steps"  # what `curve` counts
    reads_features: ClassVar[bool] = False  # True where the backbone's outputs are features, of any number

    @abstractmethod
    def adapt(self, support: Examples, steps: int | None = None) -> State:
        """Learn the task of `support`; `steps` overrides the number of inner steps, where the method has any."""

    @abstractmethod
    def predict(self, state: State, x: Tensor) -> Tensor:
        """Output [n, ...] of the adapted model `state` for inputs `x` [n, ...]."""

    def trajectory(self, support: Examples, steps: int) -> list[State]:
        """The states after 0, 1, ..., `steps` inner steps; a method without an inner loop has only its one state."""
        return [self.adapt(support)]

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The outer objective of one episode, a scalar, and scalars to log. Default: query loss after adapting."""
        output = self.predict(self.adapt(episode.support), episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return self.objective.loss(output, episode.query.y), logs

    def curve(self, episode: Episode, steps: int, *predictors: Predictor) -> tuple[Tensor, ...]:
        """What an evaluation reports: the metric on the query after 0, 1, ..., `steps` inner steps, [steps + 1].

        One curve for each of the `predictors`, which say how the query is predicted (default: by `predict`); the method adapts
        once for all. A method that learns in another order overrides this: a memory reports by presentation.
        """

        def plain(state: State, episode: Episode) -> Tensor:
            return self.predict(state, episode.query.x)

        states, metric = self.trajectory(episode.support, steps), self.objective.metric
        return tuple(
            torch.stack([metric(predicted(state, episode), episode.query.y) for state in states])
            for predicted in predictors or (plain,)
        )

    def begin_iteration(self, iteration: int) -> None:
        """Called before each meta-update with the number made so far, for a method whose objective changes over training."""

    @property
    def inner_module(self) -> nn.Module | None:
        """The module whose parameters `adapted` names, for a method with an inner loop over them."""
        return getattr(self, "backbone", None)

    def heed_frozen(self) -> None:
        """Exclude from the inner loop the layers that were frozen (`requires_grad_(False)`) after the method was made.

        Called before a meta-training and before an evaluation. If everything is frozen, as in a model that is only used, the
        inner loop stays as it was.
        """
        module, adapted = self.inner_module, vars(self).get("adapted")
        if module is None or adapted is None:
            return
        values = dict(module.named_parameters())
        left = [name for name in adapted if values[name].requires_grad]
        if left and len(left) < len(adapted):
            self.adapted = left

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the other examples of the query batch (batch norm on batch statistics)."""
        return any(isinstance(module, BatchStatNorm) for module in self.modules())
