"""`rectify` against plain operators: values, three derivatives, nested vmap, and the blocks that a CPU works in."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from mamllit.backbones import operators
from mamllit.backbones.rectify import rectify

BORDERS = [(0, 0), (0, 1), (1, 1)]


def plain(y: Tensor, shift: Tensor, border: tuple[int, int] = (0, 0)) -> Tensor:
    return F.pad((y + shift).relu(), (0, 0, *border, *border))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("border", BORDERS)
def test_value_and_derivatives(border: tuple[int, int]) -> None:
    inputs = (random(2, 3, 2, 2).requires_grad_(), random(2).requires_grad_())
    torch.testing.assert_close(rectify(*inputs, border), plain(*inputs, border))

    def cubed(y: Tensor, shift: Tensor) -> Tensor:
        return rectify(y, shift, border).pow(3)

    assert gradcheck(cubed, inputs)
    assert gradgradcheck(cubed, inputs)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("own_shift", [False, True])
@pytest.mark.parametrize("cached_bytes", [1, 2**40], ids=["task by task", "all tasks at once"])
def test_nested_tasks_under_third_derivatives(
    border: tuple[int, int], own_shift: bool, cached_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "CACHED_BYTES", cached_bytes)
    y, shift = random(2, 4, 2, 2, 3, 3), random(2, 3) if own_shift else random(3)

    def derivative(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        def first(y: Tensor, shift: Tensor) -> Tensor:
            to_y, to_shift = grad(lambda y, shift: function(y, shift, border).pow(4).sum(), (0, 1))(y, shift)
            return to_y.square().sum() + to_shift.square().sum()

        def second(y: Tensor, shift: Tensor) -> Tensor:
            return grad(first)(y, shift).square().sum()

        return vmap(vmap(grad(second, (0, 1)), (0, None)), (0, 0 if own_shift else None))(y, shift)

    torch.testing.assert_close(derivative(rectify), derivative(plain))
