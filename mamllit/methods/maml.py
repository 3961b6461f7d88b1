"""Model-Agnostic Meta-Learning, exact second order and first order.

C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017,
arXiv 1703.03400. Algorithm 2: adapt theta to each task by a few gradient steps on its support loss, then move theta against
the gradient, through those steps, of the adapted models' query loss.

Departures from the paper's text, both after the authors' code: losses are summed and divided by the shots (reduction), and
the batch norm shift is meta-learned but not adapted (frozen).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, adapted_parameters, gradient_step
from mamllit.methods.base import InnerLoopMethod
from mamllit.methods.checks import check_inner_loop, task_loss
from mamllit.objectives import Objective, Reduction

HeadStart = Literal["learned", "zero"]


class MAML(InnerLoopMethod):
    """Learn an initialisation from which `inner_steps` gradient steps solve a task.

    Args:
        backbone: the network f_theta, any module without running buffers.
        objective: `Classification` or `Regression`.
        inner_lr: alpha, the step size of the inner loop.
        inner_steps: gradient steps per task in meta-training, >= 0; evaluation may take more.
        reduction: how support and query losses are reduced. "sum_over_shots" is the paper's code: in classification an
            inner gradient N times that of "mean".
        first_order: drop the second derivatives (section 5.2, "first-order approximation").
        frozen: shell patterns of backbone parameters that the inner loop leaves alone.
        head: where the last layer, `backbone.head`, starts in every task: "learned" with the rest (the paper), or at "zero",
            which is not meta-learned and halves the meta-iterations to a given accuracy (Kao et al., ICLR 2022).

    Raises:
        ValueError: for a backbone with running buffers, a negative number of steps or step size, or an unknown head; for a
            zero head where the backbone has none, or where the inner loop would never move it.
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
        head: HeadStart = "learned",
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order = reduction, first_order
        self.adapted = adapted_parameters(backbone, frozen)
        self.zeroed = self._zeroed(head)

    def _zeroed(self, head: HeadStart) -> frozenset[str]:
        """Names of the parameters that start at zero in every task."""
        if head not in ("learned", "zero"):
            raise ValueError(f"head is {head!r}; it must be 'learned' or 'zero'")
        if head == "learned":
            return frozenset()
        layer = getattr(self.backbone, "head", None)
        if not isinstance(layer, nn.Module):
            raise ValueError(f"head is 'zero', but {type(self.backbone).__name__} has no module `head`; use head: learned")
        own = {id(value) for value in layer.parameters()}
        names = frozenset(name for name, value in self.backbone.named_parameters() if id(value) in own)
        if fixed := sorted(names.difference(self.adapted)):
            raise ValueError(f"head is 'zero', but the inner loop does not adapt {fixed}; take them out of frozen")
        return names

    def start(self) -> Params:
        state = {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}
        return {name: torch.zeros_like(value) if name in self.zeroed else value for name, value in state.items()}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self._loss(self.predict(params, support.x), support, support)

        return gradient_step(support_loss, state, self.adapted, self.inner_lr, self.first_order)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, state, (x,))

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(state, episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return self._loss(output, episode.query, episode.support), logs

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)
