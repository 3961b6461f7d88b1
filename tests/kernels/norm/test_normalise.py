"""`normalise` against plain operators: values, three derivatives, nested vmap, and the blocks that a CPU works in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from mamllit.kernels import operators
from mamllit.kernels.norm.normalise import normalise

EPS = 1e-3
CASES = [(False, (0, 0)), (True, (0, 0)), (False, (0, 1)), (True, (1, 1))]  # with a tensor p of its own? border


def plain(x: Tensor, p: Tensor | None, beta: Tensor, eps: float, relu: bool, border: tuple[int, int]) -> Tensor:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    z = ((x if p is None else p) - mean) / (variance + eps).sqrt() + beta
    return F.pad(z.relu() if relu else z, (0, 0, *border, *border))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("own_p", "border"), CASES)
def test_value_and_derivatives_up_to_the_third(own_p: bool, border: tuple[int, int], relu: bool) -> None:
    inputs = [random(2, 2, 2, 2), random(2), *([random(2, 2, 1, 2)] if own_p else [])]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def function(x: Tensor, beta: Tensor, p: Tensor | None = None) -> Tensor:
        return normalise(x, p, beta, EPS, relu, border)

    expected = plain(inputs[0], inputs[2] if own_p else None, inputs[1], EPS, relu, border)
    torch.testing.assert_close(function(*inputs), expected)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)

    def second(x: Tensor) -> Tensor:
        first = torch.autograd.grad(function(x, *inputs[1:]).pow(3).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, inputs[:1])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("own_p", "border"), CASES)
@pytest.mark.parametrize("cached_bytes", [1, 2**40], ids=["task by task", "all tasks at once"])
@pytest.mark.parametrize("own_beta", [False, True])
def test_nested_tasks_under_second_derivatives(
    own_p: bool, border: tuple[int, int], relu: bool, cached_bytes: int, own_beta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "CACHED_BYTES", cached_bytes)
    x, p, beta = random(2, 4, 2, 2, 3, 3), random(2, 4, 3, 2, 1, 3) if own_p else None, random(2, 3) if own_beta else random(3)

    def derivative(function: Callable[..., Tensor]) -> Tensor:
        def first(x: Tensor, p: Tensor | None, beta: Tensor) -> Tensor:
            return grad(lambda x: function(x, p, beta, EPS, relu, border).pow(3).sum())(x)

        def one(x: Tensor, p: Tensor | None, beta: Tensor) -> Tensor:
            return grad(lambda x: first(x, p, beta).square().sum())(x)

        dims: Any = 0 if own_p else None
        return vmap(vmap(one, (0, dims, None)), (0, dims, 0 if own_beta else None))(x, p, beta)

    torch.testing.assert_close(derivative(normalise), derivative(plain))


@pytest.mark.parametrize(("own_p", "border"), CASES)
def test_gradients_reach_all_three_from_outside_a_vmap(own_p: bool, border: tuple[int, int]) -> None:
    tensors = [random(3, 2, 2, 2, 2), random(2), *([random(3, 2, 1, 2, 2)] if own_p else [])]
    results = []
    for function in (normalise, plain):
        x, beta, *p = (tensor.clone().requires_grad_() for tensor in tensors)
        run = lambda x, p: grad(lambda x: function(x, p, beta, EPS, True, border).pow(3).sum())(x)  # noqa: B023, E731
        loss = vmap(run, (0, 0 if p else None))(x, p[0] if p else None).square().sum()
        results.append(torch.autograd.grad(loss, [x, beta, *p]))
    torch.testing.assert_close(*results)
