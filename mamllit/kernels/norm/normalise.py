"""Normalising by a batch's own statistics, a shift and ReLU as one operator; its first two derivatives in closed form.

Left to autograd, the derivatives of a batch norm are many passes over memory, which on a CPU take a large part of a
meta-gradient's time. In closed form (`norm_kernels`) they are a handful, on a few tasks at a time, whose numbers then stay in
the cache. A third derivative is made by autograd. On an accelerator the same formulas are plain
operators, which the compiler fuses.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.kernels.norm import kernels
from mamllit.kernels.norm import library as norm_library
from mamllit.kernels.operators import bordered, in_blocks, inner, operator, over_tasks, zero_border

# ---- the operators: on an accelerator, and where autograd records, plain ones; else in blocks, where no tracer looks in ------


def _forward(x: Tensor, p: Tensor | None, shift: Tensor, eps: float, relu: bool, before: int, after: int) -> list[Tensor]:
    z, mean, r = kernels.forward(x, p, shift, eps, relu)
    return [F.pad(z, (0, 0, before, after, before, after)), mean, r]


def _first(
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    return kernels.first(inner(g, before, after), x, p, inner(z, before, after), mean, r, eps, relu)


def _second(
    u: Tensor, up: Tensor | None, v: Tensor,
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor, total: Tensor, b: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    g, z = inner(g, before, after), inner(z, before, after)
    to_g, *others = kernels.second(u, up, v, g, x, p, z, mean, r, total, b, eps, relu)
    return [F.pad(to_g, (0, 0, before, after, before, after)), *others]


def _forward_blocks(
    x: Tensor, p: Tensor | None, shift: Tensor, eps: float, relu: bool, before: int, after: int
) -> list[Tensor]:
    z = bordered(x if p is None else p, before, after)
    if p is None and x.dim() == 4:
        _, mean, r = norm_library.forward(x, shift, eps, relu, inner(z, before, after))
        zero_border(z, before, after)
        return [z, mean, r]

    def block(x: Tensor, p: Tensor | None, shift: Tensor, z: Tensor) -> list[Tensor]:
        _, mean, r = kernels.forward(x, p, shift, eps, relu, inner(z, before, after))
        zero_border(z, before, after)
        return [z, mean, r]

    return [z, *in_blocks(block, [z], x, p, shift)]


def _first_blocks(
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    g, z = inner(g, before, after), inner(z, before, after)
    if p is None and x.dim() == 4:
        return norm_library.first(g, x, z, mean, r, eps, relu)
    to = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, p) if tensor is not None]
    return [*to, *in_blocks(kernels.first, to, g, x, p, z, mean, r, eps, relu)]


def _second_blocks(
    u: Tensor, up: Tensor | None, v: Tensor,
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor, total: Tensor, b: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    to = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, p) if tensor is not None]
    g, z = inner(g, before, after), inner(z, before, after)
    to_g = bordered(g, before, after)

    def block(*values: Any) -> list[Tensor]:
        arguments, whole, others = values[:13], values[13], values[14:]
        kernels.second(*arguments, inner(whole, before, after), *others)
        zero_border(whole, before, after)
        return [whole, *to]

    in_blocks(block, [to_g, *to], u, up, v, g, x, p, z, mean, r, total, b, eps, relu)
    return [to_g, *to]


NUMBERS = "float eps, bool relu, int before, int after"
SAVED = "Tensor x, Tensor? p, Tensor z, Tensor mean, Tensor r"
forward = operator("normalise", _forward, _forward_blocks, f"Tensor x, Tensor? p, Tensor shift, {NUMBERS}")
first = operator("normalise_grad", _first, _first_blocks, f"Tensor g, {SAVED}, {NUMBERS}")
second = operator(
    "normalise_grad_grad",
    _second,
    _second_blocks,
    f"Tensor u, Tensor? up, Tensor v, Tensor g, {SAVED}, Tensor total, Tensor b, {NUMBERS}",
)


# ---- derivatives and the batch of tasks --------------------------------------------------------------------------------------


def as_shift(beta: Tensor) -> Tensor:
    """[C] as it is; [T, C] -> [T, 1, 1, 1, C], to be added to images."""
    return beta if beta.dim() == 1 else beta[:, None, None, None]


class Normalise(torch.autograd.Function):
    """apply(x, p, beta, eps, relu, before, after) -> z, mean, r, where the last two are constants; beta is [C] or [T, C]."""

    @staticmethod
    def forward(
        x: Tensor, p: Tensor | None, beta: Tensor, eps: float, relu: bool, before: int, after: int
    ) -> tuple[Tensor, ...]:
        return tuple(forward(x, p, as_shift(beta), eps, relu, before, after))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, p, beta, *ctx.numbers = inputs
        z, mean, r = output
        ctx.shared_beta = beta.dim() == 1
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, p, z, mean, r)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        to_x, *to_p, total, _ = NormaliseGrad.apply(g, *ctx.saved_tensors, *ctx.numbers)
        to_beta = total.flatten(-4)
        if ctx.shared_beta and to_beta.dim() == 2:
            to_beta = to_beta.sum(0)
        return to_x, to_p[0] if to_p else None, to_beta, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(Normalise, info, in_dims, args)


class NormaliseGrad(torch.autograd.Function):
    """apply(g, x, p, z, mean, r, eps, ...) -> to x, to p unless that is None, sum of g, and sum of g phat / N (a constant)."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor,
        eps: float, relu: bool, before: int, after: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return tuple(first(g, x, p, z, mean, r, eps, relu, before, after))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.numbers = inputs[:6], inputs[6:]
        *_, total, b = output
        ctx.mark_non_differentiable(b)
        ctx.save_for_backward(*tensors, total, b)

    @staticmethod
    def backward(ctx: Any, u: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        *up, v, _ = others
        to_g, to_x, *to_p = second(u, up[0] if up else None, v, *ctx.saved_tensors, *ctx.numbers)
        return to_g, to_x, to_p[0] if to_p else None, *[None] * 7

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(NormaliseGrad, info, in_dims, args)


def normalise(
    x: Tensor, p: Tensor | None, beta: Tensor, eps: float, relu: bool = False, border: tuple[int, int] = (0, 0)
) -> Tensor:
    """Normalise `p` [m, h, w, C] (None: `x` itself) by the statistics of `x` [n, H, W, C], add `beta` [C], and rectify.

    Differentiable with respect to all three, any number of times. `border`: rows of zeros to put before and after in both
    dimensions of an image, for a convolution that then needs no padding. Returns [m, h + sum(border), w + sum(border), C].
    """
    return Normalise.apply(x, p, beta, eps, relu, *border)[0]
