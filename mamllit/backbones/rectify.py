"""A shift per channel, ReLU and a border of zeros as one operator, for images [n, H, W, C] and batches of tasks of them.

Linear but for the mask of what is positive, so its derivatives of every order are made of two other operators. On a CPU all
work on as many tasks at a time as stay in the cache.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.backbones.norm_kernels import masked, sum_rows
from mamllit.backbones.operators import bordered, in_blocks, inner, operator, over_tasks, zero_border


def _shifted(y: Tensor, shift: Tensor, *out: Tensor) -> list[Tensor]:
    z = torch.add(y, shift, out=out[0] if out else None)
    return [z.relu_() if out else torch.relu(z)]


def _forward(y: Tensor, shift: Tensor, before: int, after: int) -> list[Tensor]:
    return [F.pad(_shifted(y, shift)[0], (0, 0, before, after, before, after))]


def _forward_blocks(y: Tensor, shift: Tensor, before: int, after: int) -> list[Tensor]:
    z = bordered(y, before, after)

    def block(y: Tensor, shift: Tensor, z: Tensor) -> list[Tensor]:
        _shifted(y, shift, inner(z, before, after))
        zero_border(z, before, after)
        return [z]

    in_blocks(block, [z], y, shift)
    return [z]


def _masked(g: Tensor, z: Tensor, *out: Tensor) -> list[Tensor]:
    if out:
        to_y = torch.ops.aten.threshold_backward.grad_input(g, z, 0, grad_input=out[0])
    else:
        to_y = masked(g, z)
    return [to_y, sum_rows(to_y)]


def _first(g: Tensor, z: Tensor, before: int, after: int) -> list[Tensor]:
    return _masked(inner(g, before, after), inner(z, before, after))


def _first_blocks(g: Tensor, z: Tensor, before: int, after: int) -> list[Tensor]:
    g, z = inner(g, before, after), inner(z, before, after)
    to_y = torch.empty_like(g, memory_format=torch.contiguous_format)
    return [to_y, *in_blocks(_masked, [to_y], g, z)]


def _spread(u: Tensor, v: Tensor, z: Tensor, *out: Tensor) -> list[Tensor]:
    both = torch.add(u, v, out=out[0] if out else None)
    return [torch.ops.aten.threshold_backward.grad_input(both, z, 0, grad_input=both) if out else masked(both, z)]


def _second(u: Tensor, v: Tensor, z: Tensor, before: int, after: int) -> list[Tensor]:
    return [F.pad(_spread(u, v, inner(z, before, after))[0], (0, 0, before, after, before, after))]


def _second_blocks(u: Tensor, v: Tensor, z: Tensor, before: int, after: int) -> list[Tensor]:
    to_g = bordered(u, before, after)

    def block(u: Tensor, v: Tensor, z: Tensor, to_g: Tensor) -> list[Tensor]:
        _spread(u, v, z, inner(to_g, before, after))
        zero_border(to_g, before, after)
        return [to_g]

    in_blocks(block, [to_g], u, v, inner(z, before, after))
    return [to_g]


BORDER = "int before, int after"
forward = operator("rectify", _forward, _forward_blocks, f"Tensor y, Tensor shift, {BORDER}")
first = operator("rectify_grad", _first, _first_blocks, f"Tensor g, Tensor z, {BORDER}")
second = operator("rectify_grad_grad", _second, _second_blocks, f"Tensor u, Tensor v, Tensor z, {BORDER}")


class Rectify(torch.autograd.Function):
    """apply(y, shift, before, after) -> (z,); shift is [C] or [T, C]."""

    @staticmethod
    def forward(y: Tensor, shift: Tensor, before: int, after: int) -> tuple[Tensor, ...]:
        return tuple(forward(y, shift if shift.dim() == 1 else shift[:, None, None, None], before, after))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, shift, *ctx.border = inputs
        ctx.shared_shift = shift.dim() == 1
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        to_y, total = RectifyGrad.apply(g, *ctx.saved_tensors, *ctx.border)
        to_shift = total.flatten(-4)
        if ctx.shared_shift and to_shift.dim() == 2:
            to_shift = to_shift.sum(0)
        return to_y, to_shift, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(Rectify, info, in_dims, args)


class RectifyGrad(torch.autograd.Function):
    """apply(g, z, before, after) -> to y, and its sum (to the shift)."""

    @staticmethod
    def forward(g: Tensor, z: Tensor, before: int, after: int) -> tuple[Tensor, ...]:
        return tuple(first(g, z, before, after))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, z, *ctx.border = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
        return RectifySpread.apply(u, v, *ctx.saved_tensors, *ctx.border)[0], None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(RectifyGrad, info, in_dims, args)


class RectifySpread(torch.autograd.Function):
    """apply(u, v, z, before, after) -> (to g,), the transpose of `RectifyGrad`."""

    @staticmethod
    def forward(u: Tensor, v: Tensor, z: Tensor, before: int, after: int) -> tuple[Tensor, ...]:
        return tuple(second(u, v, z, before, after))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, z, *ctx.border = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        return *RectifyGrad.apply(h, *ctx.saved_tensors, *ctx.border), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(RectifySpread, info, in_dims, args)


def rectify(y: Tensor, shift: Tensor, border: tuple[int, int] = (0, 0)) -> Tensor:
    """max(y + shift, 0) for images `y` [n, H, W, C] and `shift` [C], with `border` rows of zeros before and after.

    Differentiable any number of times, fast under `vmap`. Returns [n, H + sum(border), W + sum(border), C].
    """
    return Rectify.apply(y, shift, *border)[0]
