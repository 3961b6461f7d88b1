"""Bayesian MAML: particles instead of one initialisation, adapted by Stein variational gradient descent.

J. Yoon, T. Kim, O. Dia, S. Kim, Y. Bengio, S. Ahn: Bayesian Model-Agnostic Meta-Learning, NeurIPS 2018, arXiv 1806.03836. The
inner loop makes SVGD steps (`mamllit.methods.parts.svgd`) on the support; a prediction is the mean over the particles. Two
meta-losses: "chaser", the squared distance of the adapted particles (the chaser) from the leader, which takes more SVGD steps
on support and query together and is treated as a constant; and "likelihood", minus the log of the particles' mean likelihood
of the query. One particle with the latter is MAML.

Departures: the log-posterior is minus the loss of the objective, times `likelihood`; there is no prior over weights, and a
regression's precision is not a parameter (the authors' sine code learns both). The repulsion is the kernel's true gradient;
the authors' sine code uses half of it. The first particle starts from the backbone's initial weights, the others from copies
with the entries of each tensor shuffled, which is another draw of the same initialisation.

    >>> import torch
    >>> from mamllit import BMAML, Examples, MLP, Regression
    >>> method = BMAML(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean", particles=3)
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mamllit.core.adapted import adapted_parameters, select_adapted
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.methods.parts.svgd import svgd_step
from mamllit.objectives import Objective, Reduction, task_loss


class BMAML(InnerLoopMethod):
    """Learn `particles` initialisations that a few SVGD steps turn into samples of a task's posterior.

    Args:
        backbone, objective, inner_lr, inner_steps, reduction, first_order, frozen: as in `MAML`.
        particles: P, how many.
        loss: "chaser" or "likelihood".
        leader_steps: steps of the leader beyond the chaser, >= 1.
        likelihood: the factor by which minus log p exceeds the inner loss: K / (2 s^2) for the mean squared error of K points
            with noise of standard deviation s. A larger one makes the particles repel each other less; the step size stays
            the same.
        shared: shell patterns of parameters whose initial values all particles share, to save memory.

    Raises:
        ValueError: as in `MAML`; for a number out of bounds or an unknown `loss`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        first_order: bool = False,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
        particles: int = 10,
        loss: Literal["chaser", "likelihood"] = "chaser",
        leader_steps: int = 1,
        likelihood: float = 1.0,
        shared: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        if particles < 1:
            raise ValueError(f"particles is {particles}; it must be >= 1")
        if loss not in ("chaser", "likelihood"):
            raise ValueError(f"loss is {loss!r}; it must be 'chaser' or 'likelihood'")
        if leader_steps < 1:
            raise ValueError(f"leader_steps is {leader_steps}; it must be >= 1, since the chaser needs a leader")
        if likelihood <= 0:
            raise ValueError(f"likelihood is {likelihood}; it must be > 0")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order = reduction, first_order
        self.particles, self.loss, self.leader_steps, self.likelihood = particles, loss, leader_steps, likelihood
        own = dict(backbone.named_parameters())
        self.adapted = adapted_parameters(backbone, frozen)
        self.own = select_adapted(self.adapted, shared)
        copies = range(particles - 1)
        self.others = nn.ParameterList(torch.stack([_shuffled(own[name]) for _ in copies]) for name in self.own if copies)

    def start(self, ways: int) -> Params:
        """All particles, [P, ...] per parameter; the first is the backbone."""
        first = {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}
        state = {name: value.expand(self.particles, *value.shape) for name, value in first.items()}
        for name, others in zip(self.own, self.others, strict=False):
            if name in self.adapted:
                state[name] = torch.cat([first[name][None], others])
        return state

    def step(self, state: Params, support: Examples) -> Params:
        def energy(particle: Params) -> Tensor:
            return self._loss(self._output(particle, support.x), support, support)

        return svgd_step(energy, state, self.inner_lr, self.likelihood, self.first_order)

    def predictions(self, state: Params, x: Tensor) -> Tensor:
        """The outputs of all particles, [P, n, ...]."""
        return vmap(lambda particle: self._output(particle, x))(state)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return self.objective.average(self.predictions(state, x))

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = self.predictions(state, episode.query.x)
        metric = self.objective.metric(self.objective.average(outputs.detach()), episode.query.y)
        logs = {self.objective.metric_name: metric}
        if self.loss == "chaser":
            return self.chase(state, self.leader(state, episode)), logs
        losses = vmap(lambda output: self._loss(output, episode.query, episode.support))(outputs)
        mixture = torch.logsumexp(-self.likelihood * losses, 0) - math.log(self.particles)
        return -mixture / self.likelihood, logs

    def leader(self, state: Params, episode: Episode) -> Params:
        """The particles after more steps from `state`, on support and query together; constants."""
        support, query = episode
        both = support.joined(query)

        def energy(particle: Params) -> Tensor:
            return self._loss(self._output(particle, both.x), both, support)

        state = {name: value.detach() for name, value in state.items()}
        for _ in range(self.leader_steps):
            state = svgd_step(energy, state, self.inner_lr, self.likelihood, first_order=True)
        return {name: value.detach() for name, value in state.items()}

    def chase(self, chaser: Params, leader: Params) -> Tensor:
        """The squared distance of the chaser from the leader, summed over particles and parameters."""
        return torch.stack([(chaser[name] - leader[name]).square().sum() for name in self.adapted]).sum()

    def _output(self, particle: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, particle, (x,))

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)


def _shuffled(value: Tensor) -> Tensor:
    flat = value.detach().flatten()
    return flat[torch.randperm(len(flat))].reshape(value.shape).clone()
