"""Meta-learner LSTM: an LSTM whose cell state is the learner's parameters, and whose gates say how they move.

S. Ravi, H. Larochelle: Optimization as a Model for Few-Shot Learning, ICLR 2017.

    theta_t = f_t * theta_{t-1} - i_t * gradient_t

For every parameter of the learner there is one such LSTM, all with the same weights. The gates come from an ordinary LSTM of
20 hidden units, which gets the gradient and the support loss, pre-processed so that all magnitudes are usable:

    i_t = sigmoid(W_I [h_t, theta_{t-1}, i_{t-1}] + b_I),    f_t = sigmoid(W_F [h_t, theta_{t-1}, f_{t-1}] + b_F)
    x -> (log |x| / p, sign x) where |x| >= e^-p, else (-1, e^p x),    p = 10

The initial parameters theta_0 are learned with the rest. The meta-gradient treats the learner's gradients and losses as
constants, and goes through the gates and theta: with W = 0 and f = 1 this is first-order MAML. The forget gate begins near 1
and the input gate near 0 (biases U(4, 5) and U(-5, -4), weights U(-.01, .01)): the first steps are small gradient steps.

From the authors' code, not in the paper: a gate feeds back its value before the sigmoid, initially 0; and the gradient of the
mean loss is divided by the number of support examples once more (`divide`). In 5-shot the code makes 8 steps, the paper 5.
Departures: the learner is initialised as our Conv4 (theirs as Torch7's layers, gamma in U(0, 1)). The published numbers use
the support's statistics, the inductive reading.

    >>> import torch
    >>> from mamllit import MLP, Classification, Examples, MetaLearnerLSTM
    >>> method = MetaLearnerLSTM(MLP(2, [4], 2), Classification(), inner_steps=3)
    >>> task = method.adapt(Examples(torch.eye(2), torch.tensor([0, 1]), ways=2))
    >>> method.predict(task, torch.rand(5, 2)).shape
    torch.Size([5, 2])
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective

P = 10.0  # of the form in which gradients and losses are taken
HIDDEN, CELL, INPUT, FORGET = "lstm.hidden", "lstm.cell", "lstm.input", "lstm.forget"  # beside the parameters in a state


class MetaLearnerLSTM(InnerLoopMethod):
    """Learn how to update the learner's parameters, and their initial values.

    Args:
        backbone: the learner, with a head; any module without running buffers.
        objective: `Classification`.
        inner_steps: T, updates on the whole support.
        hidden: units of the first layer.
        divide: divide the gradient of the mean loss by the number of support examples, as the authors' code does.
        frozen: shell patterns of parameters that the LSTM leaves alone.

    Raises:
        ValueError: for a backbone with running buffers, or a number out of bounds.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_steps: int,
        hidden: int = 20,
        divide: bool = True,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, 0.0, inner_steps, "mean")
        if hidden < 1:
            raise ValueError(f"hidden is {hidden}; it must be >= 1")
        self.backbone, self.objective, self.inner_steps, self.divide = backbone, objective, inner_steps, divide
        self.hidden, self.adapted = hidden, adapted_parameters(backbone, frozen)
        self.given = nn.Linear(4, 4 * hidden)  # of the first layer's gates: what gradient and loss give
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        self.input, self.forget = nn.Linear(hidden + 2, 1), nn.Linear(hidden + 2, 1)
        for layer in (self.given, self.recurrent, self.input, self.forget):
            for value in layer.parameters():
                nn.init.uniform_(value, -0.01, 0.01)
        nn.init.uniform_(self.input.bias, -5, -4)
        nn.init.uniform_(self.forget.bias, 4, 5)

    def start(self, ways: int) -> Params:
        own = {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}
        like = next(iter(own.values())).detach()
        number = sum(value.numel() for value in own.values())
        rows, gates = like.new_zeros(number, self.hidden), like.new_zeros(number, 1)
        return {**own, HIDDEN: rows, CELL: rows, INPUT: gates, FORGET: gates}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self.objective.loss(self.predict(params, support.x), support.y)

        point = {name: state[name].detach() for name in self.adapted}
        gradients, loss = grad_and_value(support_loss)(point)
        gradient = torch.cat([gradients[name].flatten() for name in self.adapted]).detach()
        gradient = gradient / len(support.x) if self.divide else gradient
        theta = torch.cat([state[name].flatten() for name in self.adapted])
        theta, memory = self.update(theta, gradient, loss.detach(), state)
        moved = dict(zip(self.adapted, theta.split([state[name].numel() for name in self.adapted]), strict=True))
        return {name: moved[name].view_as(value) for name, value in state.items() if name in moved} | memory

    def update(self, theta: Tensor, gradient: Tensor, loss: Tensor, state: Params) -> tuple[Tensor, Params]:
        """The parameters `theta` [n] after a step, and the new states of their LSTMs."""
        seen = torch.cat([preprocess(gradient), preprocess(loss).expand(len(gradient), -1)], -1)
        i, f, g, o = (self.given(seen) + self.recurrent(state[HIDDEN])).chunk(4, -1)
        cell = f.sigmoid() * state[CELL] + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        known = torch.cat([hidden, theta[:, None]], -1)
        into = self.input(torch.cat([known, state[INPUT]], -1))
        forget = self.forget(torch.cat([known, state[FORGET]], -1))
        theta = forget[:, 0].sigmoid() * theta - into[:, 0].sigmoid() * gradient
        return theta, {HIDDEN: hidden, CELL: cell, INPUT: into, FORGET: forget}

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, {name: state[name] for name in self.adapted}, (x,))

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(state, episode.query.x)
        metric = self.objective.metric(output.detach(), episode.query.y)
        return self.objective.loss(output, episode.query.y), {self.objective.metric_name: metric}


def preprocess(x: Tensor) -> Tensor:
    """Numbers [...] as pairs, [..., 2]: magnitude and sign."""
    size = x.abs()
    large = torch.stack([size.clamp_min(math.exp(-P)).log() / P, x.sign()], -1)
    small = torch.stack([-torch.ones_like(x), math.exp(P) * x], -1)
    return torch.where((size >= math.exp(-P))[..., None], large, small)
