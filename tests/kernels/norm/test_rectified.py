"""`rectified` against plain operators: values, three derivatives, nested vmap, and the blocks that a CPU works in."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from mamllit.kernels import operators
from mamllit.kernels.norm.rectified import rectified

BORDERS = [(0, 0), (0, 1), (1, 1)]


def plain(p: Tensor, weight: Tensor, border: tuple[int, int] = (0, 0)) -> Tensor:
    return F.pad((p @ weight.mT).relu(), (0, 0, *border, *border))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("border", BORDERS)
def test_value_and_derivatives(border: tuple[int, int]) -> None:
    inputs = (random(2, 3, 2, 2).requires_grad_(), random(3, 2).requires_grad_())
    torch.testing.assert_close(rectified(*inputs, border), plain(*inputs, border))

    def cubed(p: Tensor, weight: Tensor) -> Tensor:
        return rectified(p, weight, border).pow(3)

    assert gradcheck(cubed, inputs)
    assert gradgradcheck(cubed, inputs)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("own_weight", ["of nobody", "of an outer task", "of an inner task"])
@pytest.mark.parametrize("cached_bytes", [1, 2**40], ids=["task by task", "all tasks at once"])
def test_nested_tasks_under_third_derivatives(
    border: tuple[int, int], own_weight: str, cached_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "CACHED_BYTES", cached_bytes)
    shapes = {"of nobody": (3, 5), "of an outer task": (2, 3, 5), "of an inner task": (2, 4, 3, 5)}
    p, weight = random(2, 4, 2, 2, 3, 5), random(*shapes[own_weight])
    outer, inner = (None if own_weight == "of nobody" else 0), (0 if own_weight == "of an inner task" else None)

    def derivative(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        def first(p: Tensor, weight: Tensor) -> Tensor:
            to_p, to_weight = grad(lambda p, weight: function(p, weight, border).pow(4).sum(), (0, 1))(p, weight)
            return to_p.square().sum() + to_weight.square().sum()

        def second(p: Tensor, weight: Tensor) -> Tensor:
            return grad(first, 1)(p, weight).square().sum()

        return vmap(vmap(grad(second, (0, 1)), (0, inner)), (0, outer))(p, weight)

    torch.testing.assert_close(derivative(rectified), derivative(plain))


@pytest.mark.parametrize("cached_bytes", [1, 2**40], ids=["task by task", "all tasks at once"])
def test_the_gradient_of_a_weight_that_all_tasks_share(cached_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From outside of `vmap`, as in the first inner step."""
    monkeypatch.setattr(operators, "CACHED_BYTES", cached_bytes)
    p, weight = random(4, 2, 2, 3, 5), random(3, 5).requires_grad_()

    def gradient(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        def one(p: Tensor, weight: Tensor) -> Tensor:
            return grad(lambda weight: function(p, weight, (0, 1)).pow(3).sum())(weight)

        adapted = vmap(one, (0, None))(p, weight)
        return torch.autograd.grad(adapted.square().sum() + vmap(function, (0, None))(p, weight).pow(2).sum(), weight)

    torch.testing.assert_close(gradient(rectified), gradient(plain))
