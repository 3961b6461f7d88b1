"""MAML++: MAML made steadier by a loss after every inner step, learned step sizes, and a batch norm per step.

A. Antoniou, H. Edwards, A. Storkey: How to train your MAML, ICLR 2019, arXiv 1810.09502. Three switches, each of which can
be off, and with all off this is `mamllit.methods.maml`:

- `multi_step_epochs`: the outer loss is a weighted sum of the query losses after each inner step. The weights begin equal;
  those of all steps but the last fall to 0.03 / N over the epochs, after which the last step alone counts.
- `learned_rates`: a meta-learned step size per inner step and parameter tensor.
- `per_step_norm`: each inner step has its own meta-learned batch norm parameters. (The authors' per-step running statistics
  are never read by their code, which normalises by the batch, as here.)

The paper's other parts: the meta-optimiser's cosine annealing is a scheduler in the YAML; the annealed derivative order is
off in the authors' configurations and absent here, as is their test with an ensemble of five checkpoints. A test with more
steps than meta-training repeats the last step's rates and norms.

    >>> import torch
    >>> from mamllit import Examples, MAMLPlusPlus, MLP, Regression
    >>> method = MAMLPlusPlus(MLP(1, [8], 1), Regression(),
    ...     inner_lr=0.01, inner_steps=1, reduction="mean", multi_step_epochs=3, learned_rates=True, per_step_norm=False)
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.backbones import BatchStatNorm
from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts import head as heads
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective, Reduction, task_loss

DONE = "done"  # beside the parameters in a state: the number of steps done
FLOOR = 0.03  # the weights of all steps but the last end at FLOOR / N


class MAMLPlusPlus(InnerLoopMethod):
    """MAML with the three switches of the module's docstring.

    Args:
        backbone, objective, inner_lr, reduction, first_order, frozen, head: as in `MAML`; learned rates begin at
            inner_lr.
        inner_steps: N, gradient steps per task in meta-training, >= 1.
        multi_step_epochs: epochs over which the multi-step loss is annealed (the authors: 15 on mini-ImageNet, 10 on
            Omniglot); 0 for the last step's loss alone from the beginning.
        learned_rates, per_step_norm: see the module.
        epoch_iterations: meta-updates that make an epoch (the authors: 500).

    Raises:
        ValueError: as in `MAML`; for no inner step, negative epochs, or a per-step norm in a network that has no norm.
    """

    optimizer_groups: ClassVar = {"rates.*": {"weight_decay": 0.0}}

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        multi_step_epochs: int,
        learned_rates: bool,
        per_step_norm: bool,
        first_order: bool = False,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
        epoch_iterations: int = 500,
        head: heads.HeadStart = "learned",
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        for name, value, low in (
            ("inner_steps", inner_steps, 1),
            ("multi_step_epochs", multi_step_epochs, 0),
            ("epoch_iterations", epoch_iterations, 1),
        ):
            if value < low:
                raise ValueError(f"{name} is {value}; it must be >= {low}")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order = reduction, first_order
        self.multi_step_epochs, self.epoch_iterations, self.epoch = multi_step_epochs, epoch_iterations, 0
        self.norm_names = norm_parameters(backbone) if per_step_norm else []
        if per_step_norm and not self.norm_names:
            raise ValueError(f"per_step_norm is true, but {type(backbone).__name__} has no BatchStatNorm; use false")
        parameters = dict(backbone.named_parameters())
        self.adapted = adapted_parameters(backbone, (*frozen, *self.norm_names))
        self.head = heads.made(head, backbone)
        self.rated = [*self.adapted, *(() if self.head is None else self.head.names)]  # the names of `rates`
        device = next(iter(parameters.values())).device
        rates = [torch.full((inner_steps,), inner_lr, device=device) for _ in self.rated]
        self.rates = nn.ParameterList(rates) if learned_rates else None
        self.norms = nn.ParameterList(parameters[name].detach().expand(inner_steps, -1).clone() for name in self.norm_names)
        for name in self.norm_names:
            parameters[name].requires_grad_(False)  # the per-step ones stand in for it

    def begin_iteration(self, iteration: int) -> None:
        self.epoch = iteration // self.epoch_iterations

    def outer_weights(self) -> Sequence[float]:
        steps, epochs = self.inner_steps, self.multi_step_epochs
        if self.epoch >= epochs:
            return super().outer_weights()
        other = max(1 / steps - self.epoch / (steps * epochs), FLOOR / steps)
        return (*(other,) * (steps - 1), 1 - (steps - 1) * other)

    def start(self, ways: int) -> Params:
        own = {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}
        like = next(iter(own.values()))
        head = {} if self.head is None else self.head.start(ways, like)
        return {**own, **head, DONE: like.new_zeros(())}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self._loss(self._output(params, state[DONE], support.x), support, support)

        rates: float | Params = self.inner_lr
        if self.rates is not None:
            pairs = zip(self.rated, self.rates, strict=True)
            rates = {name: self._of_step(rate, state[DONE]) for name, rate in pairs}
        params = {name: value for name, value in state.items() if name != DONE}
        return {**gradient_step(support_loss, params, list(params), rates, self.first_order), DONE: state[DONE] + 1}

    def predict(self, state: Params, x: Tensor) -> Tensor:
        """By the norm of the step that led to `state`, as the authors do."""
        return self._output({name: value for name, value in state.items() if name != DONE}, state[DONE] - 1, x)

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(state, episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return self._loss(output, episode.query, episode.support), logs

    def _of_step(self, per_step: Tensor, number: Tensor) -> Tensor:
        """The entry [...] of step `number` in [N, ...]; the nearest where there is none. An index that `vmap` can batch."""
        place = number.clamp(0, self.inner_steps - 1).long()
        return per_step.index_select(0, place.reshape(1)).squeeze(0)

    def _output(self, params: Params, number: Tensor, x: Tensor) -> Tensor:
        norms = {name: self._of_step(value, number) for name, value in zip(self.norm_names, self.norms, strict=True)}
        if self.head is not None:
            return self.head.output(self.backbone, {**params, **norms}, x)
        return functional_call(self.backbone, {**params, **norms}, (x,))

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)


def norm_parameters(backbone: nn.Module) -> list[str]:
    """Names of all parameters of the network's batch norms."""
    norms = [(name, module) for name, module in backbone.named_modules() if isinstance(module, BatchStatNorm)]
    return [f"{name}.{parameter}" for name, module in norms for parameter, _ in module.named_parameters()]
