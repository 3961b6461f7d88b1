"""The Kronecker-factored Fisher: exact where it should be, and its determinant and inverse against dense matrices."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from mamllit.backbones import MLP, Conv4, SameConv2d
from mamllit.methods.parts.kfac import _rows, check_layers, deviations, fisher, log_det
from mamllit.methods.parts.layers import weight_layers
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_one_linear_layer_with_a_gaussian_output_is_exact() -> None:
    layer, x = nn.Linear(3, 2).double(), double(7, 3)
    (factors,) = fisher(layer, [""], dict(layer.named_parameters()), x, Regression().fisher_roots).values()
    rows = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(factors.inputs, rows.T @ rows, **CLOSE)
    torch.testing.assert_close(factors.outputs, torch.eye(2, dtype=torch.float64), **CLOSE)


def test_the_softmax_layers_factor_is_the_mean_covariance_of_the_labels() -> None:
    net, x = MLP(4, [5], 3).double(), double(6, 4)
    factors = fisher(net, weight_layers(net), dict(net.named_parameters()), x, Classification().fisher_roots)
    p = net(x).softmax(-1)
    expected = torch.stack([torch.diag(row) - torch.outer(row, row) for row in p]).mean(0)
    torch.testing.assert_close(factors["layers.1"].outputs, expected, **CLOSE)
    assert torch.linalg.matrix_rank(expected) == 2


def test_hidden_layers_have_the_derivatives_of_the_log_likelihood() -> None:
    """Against autograd by the hidden pre-activations, one example and label after another."""
    net, x = MLP(4, [5], 3, activation="tanh").double(), double(6, 4)
    factors = fisher(net, weight_layers(net), dict(net.named_parameters()), x, Classification().fisher_roots)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for row in x:
        hidden = net.layers[0](row).detach().requires_grad_()
        log_p = net.layers[1](hidden.tanh()).log_softmax(-1)
        for label in range(3):
            (slope,) = torch.autograd.grad(log_p[label], hidden, retain_graph=True)
            expected += log_p[label].exp().detach() * torch.outer(slope, slope) / 6
    torch.testing.assert_close(factors["layers.0"].outputs, expected, **CLOSE)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_its_rows_times_its_weight(stride: int) -> None:
    layer, x = SameConv2d(2, 3, stride=stride).double(), double(4, 2, 7, 7)
    side = -(-7 // stride)
    out = (_rows(layer, x) @ layer.weight.flatten(1).T + layer.bias).reshape(4, side, side, 3)
    torch.testing.assert_close(out.movedim(-1, 1), layer(x), **CLOSE)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_the_rows_are_what_a_convolution_multiplies_its_weight_with(downsample: Any) -> None:
    """One row per example and place of the result, and in its order; the fast network leaves the bias to the norm."""
    net = Conv4(1, 2, 3, 16, downsample, implementation="fast").double()
    x = torch.rand(5, 1, 16, 16, dtype=torch.float64)
    results: dict[str, torch.Tensor] = {}
    for name in weight_layers(net)[:-1]:
        net.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: results.update({name: output}))
    factors = fisher(net, weight_layers(net), dict(net.named_parameters()), x, Classification().fisher_roots)
    for name, result in results.items():
        rows, slopes = factors[name]
        expected = result.movedim(1, -1).flatten(0, 2)
        torch.testing.assert_close(rows[:, :-1] @ net.get_submodule(name).weight.flatten(1).mT, expected, **CLOSE)
        assert len(slopes) == 3 * len(rows) and (rows[:, -1] == 1).all()


def test_the_log_determinant_is_that_of_the_dense_blocks() -> None:
    net, x = Conv4(1, 2, 3, 16, "stride").double(), torch.rand(5, 1, 16, 16, dtype=torch.float64)
    factors = fisher(net, weight_layers(net), dict(net.named_parameters()), x, Classification().fisher_roots)
    assert {len(pair.rows) < pair.rows.shape[1] for pair in factors.values()} == {True, False}  # both ways to the determinant
    dense = 0.0
    for a, g in ((pair.inputs, pair.outputs) for pair in factors.values()):
        eyes = (0.1 * torch.eye(len(value), dtype=torch.float64) for value in (g, a))
        dense += torch.logdet(torch.kron(g + next(eyes), a + next(eyes))).item()
    assert log_det(factors, 0.01).item() == pytest.approx(dense, rel=1e-9)


def test_the_laplace_approximation_is_the_evidence_of_a_linear_gaussian_model() -> None:
    """y = X phi + N(0, I), phi ~ N(theta, I / 2): -log p(y | phi*) - log p(phi* | theta) + 1/2 log det(H / 2 pi), exactly."""
    net, x, y, theta = nn.Linear(3, 1, bias=False).double(), double(8, 3), double(8), double(3)
    (factors,) = fisher(net, [""], dict(net.named_parameters()), x, Regression().fisher_roots).values()
    h = torch.kron(factors.outputs, factors.inputs) + 2 * torch.eye(3, dtype=torch.float64)
    mode = torch.linalg.solve(h, x.T @ y + 2 * theta)
    eye = torch.eye(8, dtype=torch.float64)
    prior = MultivariateNormal(theta, torch.eye(3, dtype=torch.float64) / 2)
    laplace = -MultivariateNormal(x @ mode, eye).log_prob(y) - prior.log_prob(mode) + torch.logdet(h / (2 * math.pi)) / 2
    torch.testing.assert_close(laplace, -MultivariateNormal(x @ theta, eye + x @ x.T / 2).log_prob(y), **CLOSE)


def test_deviations_have_the_inverse_of_the_damped_block_as_covariance() -> None:
    net, x = MLP(2, [], 2).double(), double(4, 2)
    factors = fisher(net, ["layers.0"], dict(net.named_parameters()), x, Classification().fisher_roots)
    pair, damping = factors["layers.0"], 0.25
    columns = []
    for unit in torch.eye(6, dtype=torch.float64):  # the map from noise to deviation is linear: its columns
        found = deviations(net, factors, damping, [unit.reshape(2, 3)])
        columns.append(torch.cat([found["layers.0.weight"], found["layers.0.bias"][:, None]], 1).flatten())
    square_root = torch.stack(columns, 1)
    g, a = (value + 0.5 * torch.eye(len(value), dtype=torch.float64) for value in (pair.outputs, pair.inputs))
    torch.testing.assert_close(square_root @ square_root.T, torch.linalg.inv(torch.kron(g, a)), **CLOSE)


def test_other_layers_are_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1))
    check_layers(net, ["0"])
    with pytest.raises(ValueError, match=r"the Fisher of layer '1', a Conv1d, has no Kronecker factors here; use torch"):
        check_layers(net, ["0", "1"])
