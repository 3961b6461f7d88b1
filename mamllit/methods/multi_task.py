"""Averaged multi-task networks, a baseline of the MAML paper: one network per task, and the mean of their parameters.

C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017, arXiv 1703.03400,
appendix C.1. 500 randomly initialised networks are each trained on many examples of one task; their parameters are averaged,
and the average is adapted to a test task by gradient steps with a tuned step size. Three variants of the training: no
regularisation, an l2 penalty on the weights, or an l2 penalty on their distance to the mean of the networks trained so far.

Here a meta-update trains one network per episode of the meta-batch, on all its examples, support and query. The meta-loss is
half the squared distance from the meta-parameters to each network, held fixed, over the number of meta-updates so far: under
an optimiser SGD with rate 1 the meta-parameters are the mean of all networks of all meta-updates. Departures: the networks of
a meta-batch are trained side by side, so that "the mean so far" is that of the previous meta-updates; each step is an Adam
step on all of the task's examples at once.

    >>> import torch
    >>> from mamllit import Examples, MLP, MultiTask, Regression
    >>> method = MultiTask(MLP(1, [8], 1), Regression(),
    ...     inner_lr=0.01, inner_steps=1, reduction="mean", train_lr=0.01, train_steps=2, penalty="none")
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.core.noise import episode_key, uniform
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.methods.parts.layers import names_in, weight_layers
from mamllit.objectives import Objective, Reduction, task_loss

Penalty = Literal["none", "l2", "l2_to_mean"]
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's


class MultiTask(InnerLoopMethod):
    """Train a network per task and average their parameters; adapt the average at test.

    A network's weights and biases are initialised as PyTorch does, uniform within 1 / sqrt(inputs of the layer); other
    parameters (of norms) start at the meta-parameters.

    Args:
        backbone, objective, reduction: as in `MAML`. Meant for regression: in classification the classes differ between
            tasks.
        inner_lr: step size of adaptation at test.
        inner_steps: number of steps, unless `adapt` is told otherwise.
        train_lr, train_steps: step size and number of the Adam steps that train each network.
        penalty: what is added to a network's loss, `penalty_weight` times: nothing, the sum of its squared parameters, or the
            squared distance to the mean of the networks trained before.
        penalty_weight: >= 0.

    Raises:
        ValueError: as in `MAML`; for a number out of bounds or an unknown penalty.
    """

    updates: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        train_lr: float,
        train_steps: int,
        penalty: Penalty,
        penalty_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        if train_lr <= 0:
            raise ValueError(f"train_lr is {train_lr}; it must be > 0")
        if train_steps < 1:
            raise ValueError(f"train_steps is {train_steps}; it must be >= 1")
        if penalty not in ("none", "l2", "l2_to_mean"):
            raise ValueError(f"penalty is {penalty!r}; it must be 'none', 'l2' or 'l2_to_mean'")
        if penalty_weight < 0:
            raise ValueError(f"penalty_weight is {penalty_weight}; it must be >= 0")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps, self.reduction = inner_lr, inner_steps, reduction
        self.train_lr, self.train_steps = train_lr, train_steps
        self.penalty, self.penalty_weight = penalty, penalty_weight
        parameters = dict(backbone.named_parameters())
        self.adapted = adapted_parameters(backbone)
        # how far from zero a parameter may begin, by its layer's number of inputs
        self.bounds = {
            name: 1 / math.sqrt(parameters[names_in(layer)[0]][0].numel())
            for layer in weight_layers(backbone)
            for name in names_in(layer)
            if name in self.adapted
        }
        self.register_buffer("updates", torch.zeros(()))  # meta-updates before this one

    def begin_iteration(self, iteration: int) -> None:
        self.updates.fill_(iteration)

    # ---- the average, adapted ------------------------------------------------------------------------------------

    def start(self, ways: int) -> Params:
        return dict(self.backbone.named_parameters())

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            output = self.predict(params, support.x)
            return task_loss(self.objective, output, support, support, self.reduction)

        return gradient_step(support_loss, state, self.adapted, self.inner_lr, first_order=True)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, state, (x,))

    # ---- a network of a task -------------------------------------------------------------------------------------

    def begun(self, examples: Examples) -> Params:
        """The random initial parameters of a task's network, the same ones for the same examples."""
        key, own = episode_key(examples), {name: value.detach() for name, value in self.backbone.named_parameters()}
        drawn = {
            name: uniform(key, i, own[name].shape, own[name]) for i, name in enumerate(self.bounds) if name in self.adapted
        }
        return own | {name: ((2 * u - 1) * self.bounds[name]).to(own[name].dtype) for name, u in drawn.items()}

    def trained(self, examples: Examples) -> Params:
        """A task's network after all its steps."""
        mean = {name: value.detach() for name, value in self.backbone.named_parameters()}
        anything = (self.updates > 0).to(next(iter(mean.values())).dtype)  # before the first update there is no mean
        begun = self.begun(examples)
        frozen = {name: value for name, value in begun.items() if name not in self.adapted}

        def loss(params: Params) -> Tensor:
            value = self.objective.loss(self.predict({**frozen, **params}, examples.x), examples.y)
            if self.penalty == "none":
                return value
            centre, weight = (0.0, 1.0) if self.penalty == "l2" else (mean, anything)
            away = [params[name] - (centre[name] if isinstance(centre, dict) else centre) for name in self.adapted]
            return value + self.penalty_weight * weight * torch.stack([part.square().sum() for part in away]).sum()

        params = {name: begun[name] for name in self.adapted}
        first, second = ({name: torch.zeros_like(value) for name, value in params.items()} for _ in range(2))
        for number in range(1, self.train_steps + 1):
            for name, gradient in grad(loss)(params).items():
                first[name] = BETA1 * first[name] + (1 - BETA1) * gradient
                second[name] = BETA2 * second[name] + (1 - BETA2) * gradient.square()
                scale = (second[name] / (1 - BETA2**number)).sqrt() + EPS
                params[name] = params[name] - self.train_lr / (1 - BETA1**number) * first[name] / scale
        return {**frozen, **params}

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        everything = episode.support.joined(episode.query)
        return self.outer_loss(self.trained(everything), episode)

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the squared distance to `state`, over the meta-updates so far; logs the metric on the query, trained on too."""
        away = [(value - state[name].detach()).square().sum() for name, value in self.backbone.named_parameters()]
        metric = self.objective.metric(self.predict(state, episode.query.x).detach(), episode.query.y)
        return torch.stack(away).sum() / 2 / (self.updates + 1), {self.objective.metric_name: metric}
