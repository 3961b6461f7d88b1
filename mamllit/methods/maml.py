"""Model-Agnostic Meta-Learning, exact second order and first order.

C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017,
arXiv 1703.03400. Algorithm 2: adapt theta to each task by a few gradient steps on its support loss, then move theta against
the gradient, through those steps, of the adapted models' query loss.

Departures from the paper's text, both after the authors' code: losses are summed and divided by the shots (reduction), and
the batch norm shift is meta-learned but not adapted (frozen).

    >>> import torch
    >>> from mamllit import Examples, MAML, MLP, Regression
    >>> method = MAML(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean")
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts import head as heads
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective, Reduction, task_loss


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
        head: where the last layer starts in every task: "learned" with the rest (the paper), at "zero", or "shared", one vector
            for all classes; the last two adapt to any number of classes (see `mamllit.methods.parts.head`).

    Raises:
        ValueError: for a backbone with running buffers, a negative number of steps or step size; see `Head` for its own.
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
        head: heads.HeadStart = "learned",
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order = reduction, first_order
        self.adapted = adapted_parameters(backbone, frozen)
        self.head = heads.made(head, backbone)

    def start(self, ways: int) -> Params:
        own: Params = {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}
        return own if self.head is None else {**own, **self.head.start(ways, next(iter(own.values())))}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self._loss(self.predict(params, support.x), support, support)

        adapted = self.adapted if self.head is None else [*self.adapted, *self.head.names]
        return gradient_step(support_loss, state, adapted, self.inner_lr, self.first_order)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        if self.head is not None:
            return self.head.output(self.backbone, state, x)
        return functional_call(self.backbone, state, (x,))

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(state, episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return self._loss(output, episode.query, episode.support), logs

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)
