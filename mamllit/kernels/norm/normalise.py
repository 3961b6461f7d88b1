"""Normalising by a batch's own statistics, a shift and ReLU as one operator; its first two derivatives in closed form.

Left to autograd, the derivatives of a batch norm are many passes over memory, which on a CPU take a large part of a
meta-gradient's time. In closed form (`mamllit.kernels.norm.kernels`) they are a handful, on a few tasks at a time, whose
numbers then stay in the cache. A third derivative is made by autograd. On an accelerator the same formulas are plain
operators, which the compiler fuses.
"""

from typing import Any

import torch
from torch import Tensor

from mamllit.kernels.norm import kernels
from mamllit.kernels.norm import library as norm_library
from mamllit.kernels.operators import in_blocks, operator, over_tasks

# ---- the operators: on an accelerator, and where autograd records, plain ones; else in blocks, where no tracer looks in ------


def _forward(x: Tensor, shift: Tensor, eps: float, relu: bool) -> list[Tensor]:
    return kernels.forward(x, None, shift, eps, relu)


def _first(g: Tensor, x: Tensor, z: Tensor, mean: Tensor, r: Tensor, eps: float, relu: bool) -> list[Tensor]:
    return kernels.first(g, x, None, z, mean, r, eps, relu)


def _second(
    u: Tensor, v: Tensor,
    g: Tensor, x: Tensor, z: Tensor, mean: Tensor, r: Tensor, total: Tensor, b: Tensor,
    eps: float, relu: bool,
) -> list[Tensor]:  # fmt: skip
    return kernels.second(u, None, v, g, x, None, z, mean, r, total, b, eps, relu)


def _forward_blocks(x: Tensor, shift: Tensor, eps: float, relu: bool) -> list[Tensor]:
    z = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.dim() == 4:
        return norm_library.forward(x, shift, eps, relu, z)
    return [z, *in_blocks(kernels.forward, [z], x, None, shift, eps, relu)]


def _first_blocks(g: Tensor, x: Tensor, z: Tensor, mean: Tensor, r: Tensor, eps: float, relu: bool) -> list[Tensor]:
    if x.dim() == 4:
        return norm_library.first(g, x, z, mean, r, eps, relu)
    to_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [to_x, *in_blocks(kernels.first, [to_x], g, x, None, z, mean, r, eps, relu)]


def _second_blocks(
    u: Tensor, v: Tensor,
    g: Tensor, x: Tensor, z: Tensor, mean: Tensor, r: Tensor, total: Tensor, b: Tensor,
    eps: float, relu: bool,
) -> list[Tensor]:  # fmt: skip
    to_g, to_x = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (g, x))
    in_blocks(kernels.second, [to_g, to_x], u, None, v, g, x, None, z, mean, r, total, b, eps, relu)
    return [to_g, to_x]


NUMBERS = "float eps, bool relu"
SAVED = "Tensor x, Tensor z, Tensor mean, Tensor r"
forward = operator("normalise", _forward, _forward_blocks, f"Tensor x, Tensor shift, {NUMBERS}")
first = operator("normalise_grad", _first, _first_blocks, f"Tensor g, {SAVED}, {NUMBERS}")
second = operator(
    "normalise_grad_grad",
    _second,
    _second_blocks,
    f"Tensor u, Tensor v, Tensor g, {SAVED}, Tensor total, Tensor b, {NUMBERS}",
)


# ---- derivatives and the batch of tasks --------------------------------------------------------------------------------------


def as_shift(beta: Tensor) -> Tensor:
    """[C] as it is; [T, C] -> [T, 1, 1, 1, C], to be added to images."""
    return beta if beta.dim() == 1 else beta[:, None, None, None]


class Normalise(torch.autograd.Function):
    """apply(x, beta, eps, relu) -> z, mean, r, where the last two are constants; beta is [C] or [T, C]."""

    @staticmethod
    def forward(x: Tensor, beta: Tensor, eps: float, relu: bool) -> tuple[Tensor, ...]:
        return tuple(forward(x, as_shift(beta), eps, relu))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, beta, *ctx.numbers = inputs
        z, mean, r = output
        ctx.shared_beta = beta.dim() == 1
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, z, mean, r)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        to_x, total, _ = NormaliseGrad.apply(g, *ctx.saved_tensors, *ctx.numbers)
        to_beta = total.flatten(-4)
        if ctx.shared_beta and to_beta.dim() == 2:
            to_beta = to_beta.sum(0)
        return to_x, to_beta, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(Normalise, info, in_dims, args)


class NormaliseGrad(torch.autograd.Function):
    """apply(g, x, z, mean, r, eps, relu) -> to x, sum of g, and sum of g xhat / N (a constant)."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, z: Tensor, mean: Tensor, r: Tensor, eps: float, relu: bool) -> tuple[Tensor, ...]:
        return tuple(first(g, x, z, mean, r, eps, relu))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.numbers = inputs[:5], inputs[5:]
        _, total, b = output
        ctx.mark_non_differentiable(b)
        ctx.save_for_backward(*tensors, total, b)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        to_g, to_x = second(u, v, *ctx.saved_tensors, *ctx.numbers)
        return to_g, to_x, *[None] * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(NormaliseGrad, info, in_dims, args)


def normalise(x: Tensor, beta: Tensor, eps: float, relu: bool = False) -> Tensor:
    """Normalise `x` [n, H, W, C] by its own statistics, add `beta` [C], and rectify where `relu`.

    Differentiable with respect to both, any number of times, fast under `vmap`. Returns [n, H, W, C].
    """
    return Normalise.apply(x, beta, eps, relu)[0]
