"""The meta-learner LSTM against one written with torch's own cell and autograd, and where it is something known."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item
from mamllit.engine.evaluation import predict
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MetaLearnerLSTM
from mamllit.methods.meta_learner_lstm import CELL, FORGET, HIDDEN, INPUT, preprocess
from mamllit.objectives import Classification

SIDE = 4


def make(steps: int = 3, backbone: nn.Module | None = None, **settings: Any) -> MetaLearnerLSTM:
    torch.manual_seed(0)
    network = MLP(SIDE * SIDE, [5], 3, norm=True, activation="tanh") if backbone is None else backbone
    method = MetaLearnerLSTM(network, Classification(), steps, **{"hidden": 4, **settings}).double()
    for layer in (method.given, method.recurrent, method.input, method.forget):
        nn.init.normal_(layer.weight, std=0.5)  # so that every gate matters
    return method


@pytest.fixture
def episodes(image_episodes: Callable[..., Episode]) -> Episode:
    return image_episodes(2, ways=3, shots=2, queries=3, side=SIDE)


def loop(method: MetaLearnerLSTM, episode: Episode) -> Tensor:
    """The query loss after T steps: `nn.LSTMCell` for the first layer, autograd for the gradients, which are then constants."""
    cell = nn.LSTMCell(4, method.hidden).double()
    names = [name for name, _ in method.backbone.named_parameters()]
    weights = {
        "weight_ih": method.given.weight, "bias_ih": method.given.bias, "weight_hh": method.recurrent.weight,
        "bias_hh": torch.zeros(4 * method.hidden, dtype=torch.float64),
    }  # fmt: skip
    theta = torch.cat([value.flatten() for value in method.backbone.parameters()])
    shapes = [value.shape for value in method.backbone.parameters()]

    def output(theta: Tensor, x: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes])
        params = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return functional_call(method.backbone, params, (x,))

    memory = [torch.zeros(len(theta), method.hidden, dtype=torch.float64)] * 2
    i = f = torch.zeros(len(theta), 1, dtype=torch.float64)
    for _ in range(method.inner_steps):
        point = theta.detach().requires_grad_()
        loss = F.cross_entropy(output(point, episode.support.x), episode.support.y)
        (gradient,) = torch.autograd.grad(loss, point)
        gradient = gradient / len(episode.support.y)
        rows = []
        for value in (gradient, loss.detach().expand_as(gradient)):
            for number in value.tolist():
                if abs(number) >= math.exp(-10):
                    rows.append([math.log(abs(number)) / 10, math.copysign(1, number)])
                else:
                    rows.append([-1, math.exp(10) * number])
        seen = torch.tensor(rows, dtype=torch.float64).unflatten(0, (2, -1))
        memory = list(functional_call(cell, weights, (torch.cat([*seen], -1), tuple(memory))))
        known = torch.cat([memory[0], theta[:, None]], -1)
        i, f = method.input(torch.cat([known, i], -1)), method.forget(torch.cat([known, f], -1))
        theta = f[:, 0].sigmoid() * theta - i[:, 0].sigmoid() * gradient
    return F.cross_entropy(output(theta, episode.query.x), episode.query.y)


def test_a_loop_with_autograd_gives_the_same_loss_and_gradient(episodes: Episode) -> None:
    method = make()
    step = MetaGradient(method)(episodes)
    loss = torch.stack([loop(method, item(episodes, i)) for i in range(2)]).mean()
    torch.testing.assert_close(step.loss, loss.detach())
    gradients = torch.autograd.grad(loss, list(method.parameters()))
    for (name, found), expected in zip(step.gradient.items(), gradients, strict=True):
        torch.testing.assert_close(found, expected, msg=name)


class Linear:
    """A loss that is linear in the output, so that a linear learner's gradient does not depend on its parameters."""

    metric_name, higher_is_better = "loss", False

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return (output * torch.eye(output.shape[-1], dtype=output.dtype)[y]).mean()

    metric = loss


def test_the_gradient_is_the_slope_where_what_is_constant_does_not_move(
    episodes: Episode, assert_meta_gradient_is_the_slope: Any
) -> None:
    method = make(backbone=nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)))
    method.objective = Linear()  # type: ignore[assignment]
    with torch.no_grad():
        method.given.weight[:, 2:] = 0  # the loss moves with the parameters, and is a constant for the meta-gradient
    assert_meta_gradient_is_the_slope(method, episodes)


def as_sgd(method: MetaLearnerLSTM, rate: float) -> None:
    with torch.no_grad():
        for layer in (method.input, method.forget):
            layer.weight.zero_()
        method.input.bias.fill_(math.log(rate / (1 - rate)))
        method.forget.bias.fill_(50.0)


@pytest.mark.parametrize("divide", [True, False])
def test_with_open_gates_it_is_gradient_descent_and_first_order_maml(divide: bool, episodes: Episode) -> None:
    method, episode = make(5, divide=divide), item(episodes, 0)
    as_sgd(method, 0.3)
    params = {name: value.detach().clone() for name, value in method.backbone.named_parameters()}
    for _ in range(5):
        leaves = {name: value.requires_grad_() for name, value in params.items()}
        loss = F.cross_entropy(functional_call(method.backbone, leaves, (episode.support.x,)), episode.support.y)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        rate = 0.3 / len(episode.support.y) if divide else 0.3
        params = {n: (v - rate * g).detach() for (n, v), g in zip(leaves.items(), gradients, strict=True)}
    adapted = method.adapt(episode.support)
    for name, value in params.items():
        torch.testing.assert_close(adapted[name], value, rtol=1e-6, atol=1e-9)
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    loss = F.cross_entropy(functional_call(method.backbone, leaves, (episode.query.x,)), episode.query.y)
    query_gradient = torch.autograd.grad(loss, list(leaves.values()))
    step = MetaGradient(method)(Episode(*(Examples(e.x[:1], e.y[:1], 3) for e in episodes)))
    for name, expected in zip(params, query_gradient, strict=True):
        torch.testing.assert_close(step.gradient[f"method.backbone.{name}"], expected, rtol=1e-6, atol=1e-9)


def test_numbers_of_all_sizes_by_hand() -> None:
    edge = math.exp(-10)
    torch.testing.assert_close(
        preprocess(torch.tensor([math.e, -1.0, edge * (1 + 1e-9), -edge / 2, 0.0], dtype=torch.float64)),
        torch.tensor([[0.1, 1.0], [0.0, -1.0], [-1.0, 1.0], [-1.0, -0.5], [-1.0, 0.0]], dtype=torch.float64),
    )
    for sign in (-1, 1):  # both forms meet where one ends
        torch.testing.assert_close(*(preprocess(torch.tensor([sign * edge * (1 + d)]).double()) for d in (-1e-9, 1e-9)))


def test_a_step_by_hand() -> None:
    """With all weights 0, f = i = 1/2 and theta moves to (theta - gradient) / 2; what is fed back are the biases, 0."""
    method = make()
    with torch.no_grad():
        for layer in (method.given, method.recurrent, method.input, method.forget):
            for value in layer.parameters():
                value.zero_()
    state = {name: torch.zeros(2, size).double() for name, size in ((HIDDEN, 4), (CELL, 4), (INPUT, 1), (FORGET, 1))}
    theta, gradient = torch.tensor([[2.0, 4.0], [1.0, -1.0]], dtype=torch.float64)
    theta, memory = method.update(theta, gradient, state[INPUT][0, 0], state)
    assert theta.tolist() == [0.5, 2.5]
    assert all((value == 0).all() for value in memory.values())


def test_each_coordinate_is_moved_alike() -> None:
    method, order = make(), torch.randperm(6)
    theta, gradient = torch.randn(2, 6, dtype=torch.float64)
    sizes = ((HIDDEN, 4), (CELL, 4), (INPUT, 1), (FORGET, 1))
    state = {name: torch.randn(6, size, dtype=torch.float64) for name, size in sizes}
    loss = torch.tensor(1.3).double()
    moved, memory = method.update(theta, gradient, loss, state)
    again, other = method.update(theta[order], gradient[order], loss, {name: value[order] for name, value in state.items()})
    torch.testing.assert_close(again, moved[order])
    assert all(torch.allclose(other[name], memory[name][order]) for name in memory)


def test_the_papers_sizes_and_biases() -> None:
    method = MetaLearnerLSTM(Conv4(3, 32, 5, 84, norm_scale=True), Classification(), 12)
    learner = sum(value.numel() for value in method.backbone.parameters())
    assert (learner, sum(value.numel() for value in method.parameters()) - learner) == (32_901, 2_046)
    assert 4 <= method.forget.bias <= 5 and -5 <= method.input.bias <= -4
    assert method.given.weight.abs().max() <= 0.01


def test_in_the_inductive_reading_a_query_is_judged_alone(episodes: Episode) -> None:
    method, episode = make(), item(episodes, 0)
    state = method.adapt(episode.support)
    whole = predict(method, state, episode, "inductive")
    alone = Episode(episode.support, Examples(episode.query.x[4:5], episode.query.y[4:5], 3))
    torch.testing.assert_close(predict(method, state, alone, "inductive")[0], whole[4])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden is 0; it must be >= 1"):
        make(hidden=0)
    with pytest.raises(ValueError, match="inner_steps is -1; it must be >= 0"):
        make(-1)
