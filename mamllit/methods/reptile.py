"""Reptile: move the initialisation towards what a few steps of training on a task lead to.

A. Nichol, J. Achiam, J. Schulman: On First-Order Meta-Learning Algorithms, 2018, arXiv 1803.02999. Algorithm 2: train k
steps on minibatches of a task, from theta to phi; then theta <- theta + epsilon mean(phi - theta). There is no query set:
in meta-training all of an episode's examples, support and query, are trained on; at test the support alone.

theta - phi is not the derivative of a loss through the inner loop. It is the gradient of half the squared distance from theta
to phi, with phi held fixed (the paper's section 5.2 reads the algorithm so), and that is this method's meta-loss: with SGD
and learning rate epsilon it makes the paper's update, and vectorisation, DDP and clipping work as for any other method. No
graph through the inner loop is kept.

Departures: the inner Adam's moments are reset for each task (the authors' code carries them over); a task's minibatches
repeat one random order of its examples (there: a new order in each pass).

    >>> import torch
    >>> from mamllit import Examples, MLP, Regression, Reptile
    >>> method = Reptile(MLP(1, [8], 1), Regression(),
    ...     inner_lr=0.01, inner_steps=5, inner_batch=5, inner_optimizer="sgd")
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.core.noise import episode_key, uniform
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective

BETA2, EPS = 0.999, 1e-8  # Adam's, as in TensorFlow
DONE, SQUARE = "done", "square."  # beside the parameters in a state: steps done, and Adam's mean squared gradients


class Reptile(InnerLoopMethod):
    """Learn an initialisation near all tasks' solutions.

    Args:
        backbone, objective: as in `MAML`; the loss is the mean over a minibatch.
        inner_lr: step size of the inner loop.
        inner_steps: minibatches per task in meta-training.
        inner_batch: examples per minibatch; all examples if there are fewer.
        inner_optimizer: "sgd", or "adam" without momentum (beta1 = 0, the paper's).
        frozen: shell patterns of backbone parameters that stay as they are, in the outer loop too; the paper trains all.

    Raises:
        ValueError: as in `MAML`; for an empty minibatch or an unknown optimiser.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        inner_batch: int,
        inner_optimizer: Literal["sgd", "adam"],
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, "mean")
        if inner_batch < 1:
            raise ValueError(f"inner_batch is {inner_batch}; it must be >= 1")
        if inner_optimizer not in ("sgd", "adam"):
            raise ValueError(f"inner_optimizer is {inner_optimizer!r}; it must be 'sgd' or 'adam'")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps, self.inner_batch = inner_lr, inner_steps, inner_batch
        self.inner_optimizer = inner_optimizer
        self.adapted = adapted_parameters(backbone, frozen)

    def start(self, ways: int) -> Params:
        own = {name: value.detach() for name, value in self.backbone.named_parameters() if name in self.adapted}
        state = {**own, DONE: next(iter(own.values())).new_zeros(())}
        if self.inner_optimizer == "adam":
            state |= {SQUARE + name: torch.zeros_like(value) for name, value in own.items()}
        return state

    def step(self, state: Params, support: Examples) -> Params:
        batch, done = self.minibatch(support, state[DONE]), state[DONE] + 1
        frozen = {name: value.detach() for name, value in self.backbone.named_parameters() if name not in self.adapted}

        def loss(params: Params) -> Tensor:
            return self.objective.loss(functional_call(self.backbone, {**frozen, **params}, (batch.x,)), batch.y)

        new = {**state, DONE: done}
        for name, gradient in grad(loss)({name: state[name] for name in self.adapted}).items():
            if self.inner_optimizer == "adam":
                square = BETA2 * state[SQUARE + name] + (1 - BETA2) * gradient.square()
                new[SQUARE + name] = square
                gradient = gradient / ((square / (1 - BETA2**done)).sqrt() + EPS)
            new[name] = state[name] - self.inner_lr * gradient
        return new

    def minibatch(self, examples: Examples, done: Tensor) -> Examples:
        """The next `inner_batch` of the examples, in an order drawn once per task, after `done` minibatches."""
        total = len(examples.x)
        if total <= self.inner_batch:
            return examples
        order = uniform(episode_key(examples), 0, (total,), examples.x).argsort()
        places = (done.long() * self.inner_batch + torch.arange(self.inner_batch, device=order.device)) % total
        rows = order.index_select(0, places)
        return Examples(examples.x.index_select(0, rows), examples.y.index_select(0, rows), examples.ways)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, {name: state[name] for name in self.adapted}, (x,))

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        everything = episode.support.joined(episode.query)
        return self.outer_loss(self.adapt(everything), episode)

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the squared distance from the meta-parameters to `state`; logs the metric on the query, which was trained on."""
        own = dict(self.backbone.named_parameters())
        distances = [(own[name] - state[name].detach()).square().sum() for name in self.adapted]
        metric = self.objective.metric(self.predict(state, episode.query.x).detach(), episode.query.y)
        return torch.stack(distances).sum() / 2, {self.objective.metric_name: metric}
