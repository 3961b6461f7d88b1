"""`normalise` against plain operators: values, three derivatives, nested vmap, and the blocks that a CPU works in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from mamllit.kernels import operators
from mamllit.kernels.norm.normalise import normalise

EPS = 1e-3


def plain(x: Tensor, beta: Tensor, eps: float, relu: bool) -> Tensor:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    z = (x - mean) / (variance + eps).sqrt() + beta
    return z.relu() if relu else z


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("relu", [False, True])
def test_value_and_derivatives_up_to_the_third(relu: bool) -> None:
    x, beta = random(2, 2, 2, 2).requires_grad_(), random(2).requires_grad_()

    def function(x: Tensor, beta: Tensor) -> Tensor:
        return normalise(x, beta, EPS, relu)

    torch.testing.assert_close(function(x, beta), plain(x, beta, EPS, relu))
    assert gradcheck(function, (x, beta))
    assert gradgradcheck(function, (x, beta))

    def second(x: Tensor) -> Tensor:
        first = torch.autograd.grad(function(x, beta).pow(3).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x,))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("cached_bytes", [1, 2**40], ids=["task by task", "all tasks at once"])
@pytest.mark.parametrize("own_beta", [False, True])
def test_nested_tasks_under_second_derivatives(
    relu: bool, cached_bytes: int, own_beta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "CACHED_BYTES", cached_bytes)
    x, beta = random(2, 4, 2, 2, 3, 3), random(2, 3) if own_beta else random(3)

    def derivative(function: Callable[..., Tensor]) -> Tensor:
        def first(x: Tensor, beta: Tensor) -> Tensor:
            return grad(lambda x: function(x, beta, EPS, relu).pow(3).sum())(x)

        def one(x: Tensor, beta: Tensor) -> Tensor:
            return grad(lambda x: first(x, beta).square().sum())(x)

        return vmap(vmap(one, (0, None)), (0, 0 if own_beta else None))(x, beta)

    torch.testing.assert_close(derivative(normalise), derivative(plain))


def test_gradients_reach_both_from_outside_a_vmap() -> None:
    tensors, results = [random(3, 2, 2, 2, 2), random(2)], []
    for function in (normalise, plain):
        x, beta = (tensor.clone().requires_grad_() for tensor in tensors)
        run = lambda x: grad(lambda x: function(x, beta, EPS, True).pow(3).sum())(x)  # noqa: B023, E731
        results.append(torch.autograd.grad(vmap(run)(x).square().sum(), [x, beta]))
    torch.testing.assert_close(*results)
