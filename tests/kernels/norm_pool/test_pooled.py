"""`pooled_norm` against plain operators: values, three derivatives, nested vmap, parts of images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from mamllit.kernels.norm_pool import kernels as pooled_kernels
from mamllit.kernels.norm_pool.pooled import pooled_norm

EPS = 1e-3


def plain(x: Tensor, beta: Tensor, eps: float) -> Tensor:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    z = ((x - mean) / (variance + eps).sqrt() + beta).relu()
    even = z[:, : z.shape[1] // 2 * 2, : z.shape[2] // 2 * 2]
    return even.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).amax((2, 4))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("size", [(2, 2), (3, 4)])
def test_value_and_derivatives_up_to_the_third(size: tuple[int, int]) -> None:
    x, beta = random(2, *size, 2).requires_grad_(), random(2).requires_grad_()
    torch.testing.assert_close(pooled_norm(x, beta, EPS), plain(x, beta, EPS))
    assert gradcheck(lambda x, beta: pooled_norm(x, beta, EPS), (x, beta))
    assert gradgradcheck(lambda x, beta: pooled_norm(x, beta, EPS), (x, beta))

    def second(x: Tensor) -> Tensor:
        first = torch.autograd.grad(pooled_norm(x, beta, EPS).pow(3).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x,))


@pytest.mark.parametrize("part_bytes", [1, 2**40], ids=["image by image", "all images at once"])
@pytest.mark.parametrize("own_beta", [False, True])
def test_nested_tasks_under_second_derivatives(part_bytes: int, own_beta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled_kernels, "BYTES", part_bytes)
    x, beta = random(2, 4, 3, 5, 4, 3), random(2, 3) if own_beta else random(3)

    def derivative(function: Callable[..., Tensor]) -> Tensor:
        def first(x: Tensor, beta: Tensor) -> Tensor:
            return grad(lambda x: function(x, beta, EPS).pow(3).sum())(x)

        def one(x: Tensor, beta: Tensor) -> Tensor:
            return grad(lambda x: first(x, beta).square().sum())(x)

        dims: Any = 0 if own_beta else None
        return vmap(vmap(one, (0, None)), (0, dims))(x, beta)

    torch.testing.assert_close(derivative(pooled_norm), derivative(plain))


def test_gradients_reach_both_from_outside_a_vmap() -> None:
    tensors, results = [random(3, 2, 4, 4, 2), random(2)], []
    for function in (pooled_norm, plain):
        x, beta = (tensor.clone().requires_grad_() for tensor in tensors)
        run = lambda x: grad(lambda x: function(x, beta, EPS).pow(3).sum())(x)  # noqa: B023, E731
        results.append(torch.autograd.grad(vmap(run)(x).square().sum(), [x, beta]))
    torch.testing.assert_close(*results)


def test_a_large_mean_costs_no_precision() -> None:
    """Brightness: a sum of squares less the square of the mean would leave no digit of a variance of 1e-6 of its square."""
    x = torch.randn(4, 6, 6, 3) + 1000
    wanted = plain(x.double(), torch.zeros(3).double(), EPS)
    torch.testing.assert_close(pooled_norm(x, torch.zeros(3), EPS).double(), wanted, atol=2e-4, rtol=1e-4)
