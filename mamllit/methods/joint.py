"""Joint training, the MAML paper's baselines of section 5.1: one network for all tasks, trained without an inner loop.

C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017, arXiv
1703.03400. "Pretrained": trained on the examples of all tasks together, then adapted to a test task by gradient steps,
whose step size is tuned on validation tasks (`mamllit.callbacks.TunedStepSize`). "Oracle": the task's parameters are inputs
of the network (the data's `reveal_task`), and nothing is adapted.

A network that sees all tasks learns what they have in common, on sine waves little more than their mean. This is MAML without
inner steps, except that it also learns from the support: the loss is over support and query. Departure: the authors' code
trains on the support part alone, half of the points that it draws.

    >>> import torch
    >>> from mamllit import Examples, JointTraining, MLP, Regression
    >>> method = JointTraining(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean")
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
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective, Reduction, task_loss


class JointTraining(InnerLoopMethod):
    """Train on all examples of all tasks; adapt at test only.

    Args:
        backbone, objective, reduction, frozen: as in `MAML`. Meant for regression: classes differ between tasks.
        inner_lr: step size of adaptation at test.
        inner_steps: number of steps, unless `adapt` is told otherwise.

    Raises:
        ValueError: as in `MAML`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps, self.reduction = inner_lr, inner_steps, reduction
        self.adapted = adapted_parameters(backbone, frozen)

    def start(self, ways: int) -> Params:
        return {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            output = self.predict(params, support.x)
            return task_loss(self.objective, output, support, support, self.reduction)

        return gradient_step(support_loss, state, self.adapted, self.inner_lr, first_order=True)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, state, (x,))

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        return self.outer_loss(self.start(episode.ways), episode)

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of `state` on all examples of the task, support and query."""
        everything = episode.support.joined(episode.query)
        output = self.predict(state, everything.x)
        metric = self.objective.metric(output.detach(), everything.y)
        return self.objective.loss(output, everything.y), {self.objective.metric_name: metric}
