"""CAVIA: adapt a small context vector, and leave the network alone.

L. Zintgraf, K. Shiarlis, V. Kurin, K. Hofmann, S. Whiteson: Fast Context Adaptation via Meta-Learning, ICML 2019, arXiv
1810.03642. The context begins at zero in every task; the inner loop moves it by gradient steps on the support loss, the
outer loop moves the network through those steps. In regression the context is concatenated to the network's input, in image
classification it scales and shifts the channels of one layer after its norm (FiLM).

Either changes one layer's parameters linearly in the context. It is implemented that way, so the network itself needs no
change. Concatenating to a linear layer's input adds C context to its bias. FiLM after a norm multiplies the norm's gamma and
beta by 1 + A context, and adds B context to beta. Departures: A, B have no bias, so that a context of zero gives the plain
network (the authors' scale is the output of a linear layer with bias); those of `mamllit.methods.maml`.

    >>> import torch
    >>> from mamllit import CAVIA, Examples, MLP, Regression
    >>> method = CAVIA(MLP(1, [8], 1), Regression(),
    ...     inner_lr=0.01, inner_steps=1, reduction="mean", context_size=4, layer="layers.0")
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.backbones import BatchStatNorm
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective, Reduction, task_loss

CONTEXT = "context"


class CAVIA(InnerLoopMethod):
    """Learn a network that a context vector of a few numbers can turn to any task.

    Args:
        backbone, objective, inner_lr, inner_steps, reduction, first_order: as in `MAML`.
        context_size: numbers in the context.
        layer: name of the module in the backbone that the context acts on: a linear layer with bias, whose input it extends
            ("layers.0" of an `MLP`), or a norm with gamma ("norms.2" of a `Conv4` with `norm_scale`).

    The state is {"context": [context_size]}.

    Raises:
        ValueError: as in `MAML`; for an empty context, an unknown layer, or one that a context cannot act on.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        context_size: int,
        layer: str,
        first_order: bool = False,
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        if context_size < 1:
            raise ValueError(f"context_size is {context_size}; it must be >= 1")
        modules = dict(backbone.named_modules())
        if layer not in modules:
            raise ValueError(f"layer is {layer!r}, which {type(backbone).__name__} does not have; it has {list(modules)[1:]}")
        target = modules[layer]
        self.backbone, self.objective, self.layer = backbone, objective, layer
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order, self.context_size = reduction, first_order, context_size
        self.film = isinstance(target, BatchStatNorm) and target.gamma is not None
        if self.film:
            outputs, inputs = 2 * target.gamma.numel(), context_size  # type: ignore[union-attr, operator]
        elif isinstance(target, nn.Linear) and target.bias is not None:
            outputs, inputs = target.out_features, target.in_features + context_size
        else:
            raise ValueError(
                f"a context cannot act on the layer {layer!r}, a {type(target).__name__}; name a linear layer with bias, or a "
                "BatchStatNorm with gamma (norm_scale: true)"
            )
        weight = torch.empty(outputs, context_size).uniform_(-(inputs**-0.5), inputs**-0.5)  # as nn.Linear
        self.from_context = nn.Parameter(weight)

    def start(self, ways: int) -> Params:
        return {CONTEXT: self.from_context.detach().new_zeros(self.context_size)}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(context: Params) -> Tensor:
            return self._loss(self.predict(context, support.x), support, support)

        return gradient_step(support_loss, state, [CONTEXT], self.inner_lr, self.first_order)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, self.modulated(state[CONTEXT]), (x,))

    def modulated(self, context: Tensor) -> Params:
        """The parameters of the one layer under a context, by their names in the backbone."""
        change, own = self.from_context @ context, dict(self.backbone.get_submodule(self.layer).named_parameters())
        if not self.film:
            return {f"{self.layer}.bias": own["bias"] + change}
        scale, shift = change.chunk(2)
        return {f"{self.layer}.gamma": own["gamma"] * (1 + scale), f"{self.layer}.beta": own["beta"] * (1 + scale) + shift}

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(state, episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return self._loss(output, episode.query, episode.support), logs

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)
