"""Normalising by a batch's own statistics, a shift and ReLU as one operator; its first two derivatives in closed form.

Left to autograd, the derivatives of a batch norm are many passes over memory, which on a CPU take a large part of a
meta-gradient's time. In closed form (`norm_kernels`) they are a handful, on a few tasks at a time, whose numbers then stay in
the cache. A third derivative is made by autograd. On an accelerator the same formulas are plain
operators, which the compiler fuses.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from mamllit.backbones import norm_kernels as kernels

# ---- the operators: on an accelerator, and where autograd records, plain ones; else in blocks, where no tracer looks in ------


def _forward(x: Tensor, p: Tensor | None, shift: Tensor, eps: float, relu: bool, before: int, after: int) -> list[Tensor]:
    z, mean, r = kernels.forward(x, p, shift, eps, relu)
    return [F.pad(z, (0, 0, before, after, before, after)), mean, r]


def _first(
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    return kernels.first(_inner(g, before, after), x, p, _inner(z, before, after), mean, r, eps, relu)


def _second(
    u: Tensor, up: Tensor | None, v: Tensor,
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor, total: Tensor, b: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    g, z = _inner(g, before, after), _inner(z, before, after)
    to_g, *others = kernels.second(u, up, v, g, x, p, z, mean, r, total, b, eps, relu)
    return [F.pad(to_g, (0, 0, before, after, before, after)), *others]


def _forward_blocks(
    x: Tensor, p: Tensor | None, shift: Tensor, eps: float, relu: bool, before: int, after: int
) -> list[Tensor]:
    z, inner = _bordered(x if p is None else p, before, after)
    return [z, *kernels.in_blocks(kernels.forward, [inner], x, p, shift, eps, relu)]


def _first_blocks(
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    to = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, p) if tensor is not None]
    g, z = _inner(g, before, after), _inner(z, before, after)
    return [*to, *kernels.in_blocks(kernels.first, to, g, x, p, z, mean, r, eps, relu)]


def _second_blocks(
    u: Tensor, up: Tensor | None, v: Tensor,
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor, total: Tensor, b: Tensor,
    eps: float, relu: bool, before: int, after: int,
) -> list[Tensor]:  # fmt: skip
    to = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, p) if tensor is not None]
    g, z = _inner(g, before, after), _inner(z, before, after)
    to_g, inner = _bordered(g, before, after)
    kernels.in_blocks(kernels.second, [inner, *to], u, up, v, g, x, p, z, mean, r, total, b, eps, relu)
    return [to_g, *to]


def _operator(name: str, plain: Callable[..., list[Tensor]], blocks: Callable[..., list[Tensor]], tensors: str) -> Any:
    schema = f"({tensors}, float eps, bool relu, int before, int after) -> Tensor[]"
    opaque = custom_op(f"mamllit::{name}", blocks, mutates_args=(), schema=schema)
    opaque.register_fake(plain)

    def run(*values: Any) -> list[Tensor]:
        return opaque(*values) if values[0].device.type == "cpu" and not torch.is_grad_enabled() else plain(*values)

    return run


SAVED = "Tensor x, Tensor? p, Tensor z, Tensor mean, Tensor r"
forward = _operator("normalise", _forward, _forward_blocks, "Tensor x, Tensor? p, Tensor shift")
first = _operator("normalise_grad", _first, _first_blocks, f"Tensor g, {SAVED}")
second = _operator(
    "normalise_grad_grad", _second, _second_blocks, f"Tensor u, Tensor? up, Tensor v, Tensor g, {SAVED}, Tensor total, Tensor b"
)


def _inner(x: Tensor, before: int, after: int) -> Tensor:
    """`x` without its border."""
    return x[..., before : x.shape[-3] - after, before : x.shape[-2] - after, :] if before or after else x


def _bordered(like: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """An empty tensor like `like` with a border of zeros, and its inside."""
    *rest, height, width, channels = like.shape
    whole = like.new_empty(*rest, before + height + after, before + width + after, channels)
    for dim in (-3, -2):
        for start, length in ((0, before), (whole.shape[dim] - after, after)):
            if length:
                whole.narrow(dim, start, length).zero_()
    return whole, _inner(whole, before, after)


# ---- derivatives and the batch of tasks --------------------------------------------------------------------------------------


class Normalise(torch.autograd.Function):
    """apply(x, p, beta, eps, relu, before, after) -> z, mean, r, where the last two are constants; beta is [C] or [T, C]."""

    @staticmethod
    def forward(
        x: Tensor, p: Tensor | None, beta: Tensor, eps: float, relu: bool, before: int, after: int
    ) -> tuple[Tensor, ...]:
        shift = beta if beta.dim() == 1 else beta[:, None, None, None]
        return tuple(forward(x, p, shift, eps, relu, before, after))

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
        return _over_tasks(Normalise, info, in_dims, args)


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
        return _over_tasks(NormaliseGrad, info, in_dims, args)


def normalise(
    x: Tensor, p: Tensor | None, beta: Tensor, eps: float, relu: bool = False, border: tuple[int, int] = (0, 0)
) -> Tensor:
    """Normalise `p` [m, h, w, C] (None: `x` itself) by the statistics of `x` [n, H, W, C], add `beta` [C], and rectify.

    Differentiable with respect to all three, any number of times. `border`: rows of zeros to put before and after in both
    dimensions of an image, for a convolution that then needs no padding. Returns [m, h + sum(border), w + sum(border), C].
    """
    return Normalise.apply(x, p, beta, eps, relu, *border)[0]


def _over_tasks(
    operator: Any, info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule of an operator under `vmap`: the new dimension comes first, and is folded into one that is there already."""
    size, moved = info.batch_size, []
    for value, dim in zip(args, in_dims, strict=True):
        if isinstance(value, Tensor) and (dim is not None or value.dim() > 1):
            value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        moved.append(value)
    nested = [value.shape[1] for value in moved if isinstance(value, Tensor) and value.dim() == 6]
    if nested:
        moved = [_folded(value, size, nested[0]) for value in moved]
    out = operator.apply(*moved)
    return tuple(value.unflatten(0, (size, nested[0])) for value in out) if nested else out, (0,) * len(out)


def _folded(value: Any, size: int, tasks: int) -> Any:
    """[B, T, ...] -> [B * T, ...]; a shift [B, C] of all tasks is repeated for each, one [C] of everybody stays."""
    if not isinstance(value, Tensor) or value.dim() == 1:
        return value
    if value.dim() == 2:
        value = value.unsqueeze(1).expand(size, tasks, -1)
    return value.flatten(0, 1)
