"""ANIL, Almost No Inner Loop: MAML that adapts the last layer only.

A. Raghu, M. Raghu, S. Bengio, O. Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML,
ICLR 2020, arXiv 1909.09157, section 5. The inner loop moves the head; the body's features are meta-learned by the outer loop,
whose gradient goes through the head's steps.

As the body is the same before and after adaptation, the support's features are computed once and the steps are those of a
linear layer. For that the network must separate its features and its head, as `Conv4` and `MLP` do. The method is not an
`InnerLoopMethod`, whose steps would start from the images each time. Otherwise it equals
`MAML(..., frozen=[everything but the head])`, with the departures of `mamllit.methods.maml`.

    >>> import torch
    >>> from mamllit import ANIL, Examples, MLP, Regression
    >>> method = ANIL(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean")
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.methods.base import Method
from mamllit.methods.parts import head as heads
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.methods.parts.head import BIAS, WEIGHT
from mamllit.objectives import Objective, Reduction, task_loss


class ANIL(Method):
    """Learn features on which `inner_steps` gradient steps of the head solve a task.

    Args:
        backbone: a network with a method `features` and a module `head`, such as `Conv4` and `MLP`; where the method has a head
            of its own, a network that gives features.
        objective, inner_lr, inner_steps, reduction, first_order, head: as in `MAML`.

    The state is the head's parameters.

    Raises:
        ValueError: as in `MAML`; for a network without features or head.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        first_order: bool = False,
        head: heads.HeadStart = "learned",
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        own = head == "learned"
        if own and (not hasattr(backbone, "features") or not isinstance(getattr(backbone, "head", None), nn.Module)):
            raise ValueError(
                f"{type(backbone).__name__} has no method `features` or no module `head`, so ANIL cannot tell what to adapt; "
                "give it both, with forward(x) = head(features(x))"
            )
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order = reduction, first_order
        self.head = heads.made(head, backbone)
        self.adapted = adapted_parameters(backbone.head) if self.head is None else list(self.head.names)  # type: ignore[arg-type]

    def start(self, ways: int) -> Params:
        """The head before any step."""
        return self._start(ways, next(self.backbone.parameters()))

    def step(self, state: Params, support: Examples) -> Params:
        """A single inner step, for a system that collects a new support for each step (`MetaPolicy`)."""
        return self._stepped(state, self._features(support.x), support)

    def trajectory(self, support: Examples, steps: int) -> list[Params]:
        if steps < 0:
            raise ValueError(f"steps is {steps}; it must be >= 0")
        features = self._features(support.x)
        states = [self._start(support.ways, features)]
        for _ in range(steps):
            states.append(self._stepped(states[-1], features, support))
        return states

    def _stepped(self, state: Params, features: Tensor, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return task_loss(self.objective, self._head(params, features), support, support, self.reduction)

        return gradient_step(support_loss, state, state, self.inner_lr, self.first_order)

    def adapt(self, support: Examples, steps: int | None = None) -> Params:
        return self.trajectory(support, self.inner_steps if steps is None else steps)[-1]

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return self._head(state, self._features(x))

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(self.adapt(episode.support), episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return task_loss(self.objective, output, episode.query, episode.support, self.reduction), logs

    @property
    def inner_module(self) -> nn.Module | None:
        return self.backbone.head if self.head is None else None  # type: ignore[return-value]

    def _start(self, ways: int, features: Tensor) -> Params:
        if self.head is not None:
            return self.head.start(ways, features)
        own = dict(self.backbone.head.named_parameters())  # type: ignore[union-attr]
        return {name: own[name] for name in self.adapted}

    def _features(self, x: Tensor) -> Tensor:
        return self.backbone(x) if self.inner_module is None else self.backbone.features(x)  # type: ignore[operator]

    def _head(self, params: Params, features: Tensor) -> Tensor:
        if self.inner_module is None:
            return F.linear(features, params[WEIGHT], params[BIAS])
        return functional_call(self.inner_module, params, (features,))
