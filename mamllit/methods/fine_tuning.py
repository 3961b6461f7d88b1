"""Fine-tuning: a pre-trained network with a fresh head, all of it trained on the support by plain gradient descent.

S. Ravi, H. Larochelle: Optimization as a Model for Few-Shot Learning, ICLR 2017, section 5.1 (28.86 / 49.79 on mini-ImageNet)
and the authors' code, model/baselines/pre-trained-SGD.lua.

    theta_{t+1} = theta_t - inner_lr / (1 + t decay) grad L_support(theta_t),    t = 0, ..., inner_steps - 1 (15)

There is no meta-training: the experiment has `max_steps: 0`, starts from a pre-trained run (`--init_from`) without its head,
whose classes are others, and chooses inner_lr (and decay) on meta-val by `mamllit.callbacks.TunedStepSize`, once per number
of shots.

Departures: batch norm uses the statistics of the batch; the authors' code uses running statistics for the query, which come
mostly from the 15 passes over the support. One fresh head serves all tasks; the authors' code draws one for validation and
one for the test.

    >>> import torch
    >>> from mamllit.backbones import MLP
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.methods import FineTuning
    >>> from mamllit.objectives import Classification
    >>> method = FineTuning(MLP(2, [8], out_features=2), Classification(), inner_lr=0.5, inner_steps=15, decay=0.01)
    >>> support = Examples(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]), ways=2)
    >>> method.predict(method.adapt(support), support.x).argmax(-1)
    tensor([0, 1])
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective

DONE = "done"  # beside the parameters in the state: how many steps were made


class FineTuning(InnerLoopMethod):
    """Train the whole network on the support, with a decaying step size.

    Args:
        backbone: the network with its fresh head; any module without running buffers.
        objective: `Classification`.
        inner_lr: the step size of the first step.
        inner_steps: number of steps, unless `adapt` is told otherwise.
        decay: the step size of step t is inner_lr / (1 + t decay).
        frozen: shell patterns of parameters to leave alone.

    Raises:
        ValueError: for a backbone with running buffers, or a negative number.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int = 15,
        decay: float = 0.0,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, "mean")
        if decay < 0:
            raise ValueError(f"decay is {decay}; it must be >= 0")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps, self.decay = inner_lr, inner_steps, decay
        self.adapted = adapted_parameters(backbone, frozen)

    def start(self, ways: int) -> Params:
        own = {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}
        return {**own, DONE: torch.zeros_like(next(iter(own.values())).detach().flatten()[0])}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self.objective.loss(self.predict(params, support.x), support.y)

        rate = self.inner_lr / (1 + self.decay * state[DONE])
        moved = gradient_step(support_loss, state, self.adapted, rate, first_order=True)
        return {**moved, DONE: state[DONE] + 1}

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, {name: value for name, value in state.items() if name != DONE}, (x,))

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(state, episode.query.x)
        metric = self.objective.metric(output.detach(), episode.query.y)
        return self.objective.loss(output, episode.query.y), {self.objective.metric_name: metric}
