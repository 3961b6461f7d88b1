"""Meta-SGD: the initialisation and a step size for every parameter, both meta-learned.

Z. Li, F. Zhou, F. Chen, H. Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017, arXiv 1707.09835. The inner
step is phi = theta - alpha o grad L_s(theta), alpha has theta's shape and o is elementwise: the direction of a step is
learned with its length, and an entry of alpha may become negative. The outer loop moves theta and alpha on the query loss.

The step sizes fit the number of steps that they were trained with: trained for one step, they make many tasks diverge in a
few more. They are excluded from weight decay, which would pull every step size towards zero. Departures: those of
`mamllit.methods.maml`.

    >>> import torch
    >>> from mamllit import Examples, MetaSGD, MLP, Regression
    >>> method = MetaSGD(MLP(1, [8], 1), Regression(), reduction="mean")
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts import head as heads
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective, Reduction, task_loss


class MetaSGD(InnerLoopMethod):
    """MAML with a learned, signed step size per parameter.

    Args:
        backbone, objective, inner_steps, reduction, frozen, head: as in `MAML`. The rows of a head that starts at zero or
            shared share their step sizes, one per feature and one for the bias.
        inner_lr: bounds between which the initial step sizes are drawn, uniformly and independently (the paper: 0.005 and
            0.1); equal bounds make all equal.

    Raises:
        ValueError: as in `MAML`; for bounds out of order.
    """

    optimizer_groups: ClassVar = {"rates.*": {"weight_decay": 0.0}}

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        reduction: Reduction,
        inner_lr: tuple[float, float] = (0.005, 0.1),
        inner_steps: int = 1,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
        head: heads.HeadStart = "learned",
    ) -> None:
        super().__init__()
        low, high = inner_lr
        check_inner_loop(backbone, low, inner_steps, reduction)
        if high < low:
            raise ValueError(f"inner_lr is {tuple(inner_lr)}; the second bound must be >= the first")
        self.backbone, self.objective, self.inner_steps, self.reduction = backbone, objective, inner_steps, reduction
        parameters = dict(backbone.named_parameters())
        self.adapted = adapted_parameters(backbone, frozen)
        self.head = heads.made(head, backbone)
        rated: dict[str, Tensor] = {name: parameters[name] for name in self.adapted}
        if self.head is not None:
            rated |= {name: row[0] for name, row in self.head.start(1, next(iter(rated.values()))).items()}
        self.rated = list(rated)  # the names of `rates`; a layer frozen later keeps its own, unused
        self.rates = nn.ParameterList(torch.empty_like(value).uniform_(low, high) for value in rated.values())

    def learned_rates(self) -> Params:
        """The step sizes by the name of the parameter that they move, each of its shape; without gradient."""
        return {name: rate.detach() for name, rate in zip(self.rated, self.rates, strict=True)}

    def start(self, ways: int) -> Params:
        own: Params = {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}
        return own if self.head is None else {**own, **self.head.start(ways, next(iter(own.values())))}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self._loss(self.predict(params, support.x), support, support)

        rates = dict(zip(self.rated, self.rates, strict=True))
        return gradient_step(support_loss, state, list(state), rates, first_order=False)

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
