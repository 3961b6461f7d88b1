"""A batch norm, a shift, ReLU and 2x2 max-pooling as one operator on a CPU; its first two derivatives in closed form.

As three operators they pass over the maps before the pooling, the largest of a network, many times: for the statistics and
their derivatives, to spread the pooled gradient over zeros, to add the two. Here it is twice for each derivative
(`pooled_kernels`). A third derivative is made by autograd, from `norm_kernels`.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.kernels.norm import kernels as norm_kernels
from mamllit.kernels.norm.normalise import as_shift
from mamllit.kernels.norm_pool import kernels as pooled_kernels
from mamllit.kernels.operators import operator, over_tasks

# ---- the operators: plain ones where autograd records, else some images at a time --------------------------------------------


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Of maps [..., n, H, W, C], the pixels [..., n, h, w, C] of an `index` that counts in H W."""
    return x.flatten(-3, -2).gather(-2, index.flatten(-3, -2)).unflatten(-2, index.shape[-3:-1])


def _spread(p: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """The transpose of `_gather`: zeros like `like`, with `p` added at its places."""
    zeros = like.new_zeros(like.shape).flatten(-3, -2)
    return zeros.scatter_add(-2, index.flatten(-3, -2), p.flatten(-3, -2)).view(like.shape)


def _forward(x: Tensor, shift: Tensor, eps: float) -> list[Tensor]:
    images = x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)
    p, index = (
        found.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:-3])
        for found in F.max_pool2d(images, 2, return_indices=True)
    )
    return [*norm_kernels.forward(x, p, shift, eps, True), index]


def _first(g: Tensor, x: Tensor, z: Tensor, shift: Tensor, mean: Tensor, r: Tensor, index: Tensor, eps: float) -> list[Tensor]:
    to_x, to_p, total, b = norm_kernels.first(g, x, _gather(x, index), z, mean, r, eps, True)
    return [to_x + _spread(to_p, index, x), total, b]


def _second(
    u: Tensor, v: Tensor,
    g: Tensor, x: Tensor, z: Tensor, shift: Tensor, mean: Tensor, r: Tensor, index: Tensor, total: Tensor, b: Tensor,
    eps: float,
) -> list[Tensor]:  # fmt: skip
    p, up = _gather(x, index), _gather(u, index)
    to_g, to_x, to_p = norm_kernels.second(u, up, v, g, x, p, z, mean, r, total, b, eps, True)
    return [to_g, to_x + _spread(to_p, index, x)]


def _forward_blocks(x: Tensor, shift: Tensor, eps: float) -> list[Tensor]:
    return _of_batch(partial(pooled_kernels.forward, eps=eps), x, shift)


def _first_blocks(
    g: Tensor, x: Tensor, z: Tensor, shift: Tensor, mean: Tensor, r: Tensor, index: Tensor, eps: float
) -> list[Tensor]:
    return _of_batch(pooled_kernels.first, g, x, z, shift, mean, r, index)


def _second_blocks(
    u: Tensor, v: Tensor,
    g: Tensor, x: Tensor, z: Tensor, shift: Tensor, mean: Tensor, r: Tensor, index: Tensor, total: Tensor, b: Tensor,
    eps: float,
) -> list[Tensor]:  # fmt: skip
    return _of_batch(pooled_kernels.second, u, v, g, x, z, shift, mean, r, index, total, b)


def _of_batch(function: Any, *values: Tensor) -> list[Tensor]:
    """`function` of contiguous tensors, as a batch of one task where there is none."""
    values = tuple(value.contiguous() for value in values)
    if any(value.dim() == 5 for value in values):
        return function(*values)
    return [out[0] for out in function(*(value[None] if value.dim() == 4 else value for value in values))]


SAVED = "Tensor x, Tensor z, Tensor shift, Tensor mean, Tensor r, Tensor index"
forward = operator("pooled_norm", _forward, _forward_blocks, "Tensor x, Tensor shift, float eps")
first = operator("pooled_norm_grad", _first, _first_blocks, f"Tensor g, {SAVED}, float eps")
second = operator(
    "pooled_norm_grad_grad",
    _second,
    _second_blocks,
    f"Tensor u, Tensor v, Tensor g, {SAVED}, Tensor total, Tensor b, float eps",
)

# ---- derivatives and the batch of tasks --------------------------------------------------------------------------------------


class PooledNorm(torch.autograd.Function):
    """apply(x, beta, eps) -> z, mean, r, index, where the last three are constants; beta is [C] or [T, C]."""

    @staticmethod
    def forward(x: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, ...]:
        return tuple(forward(x, as_shift(beta), eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, beta, ctx.eps = inputs
        z, *constants = output
        ctx.mark_non_differentiable(*constants)
        ctx.save_for_backward(x, z, beta, *constants)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        beta = ctx.saved_tensors[2]
        to_x, total, _ = PooledNormGrad.apply(g, *ctx.saved_tensors, ctx.eps)
        to_beta = total.flatten(-4)
        return to_x, to_beta.sum(0) if beta.dim() == 1 and to_beta.dim() == 2 else to_beta, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(PooledNorm, info, in_dims, args)


class PooledNormGrad(torch.autograd.Function):
    """apply(g, x, z, beta, mean, r, index, eps) -> to x, sum of g, and sum of g phat / N (a constant)."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, z: Tensor, beta: Tensor, mean: Tensor, r: Tensor, index: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        return tuple(first(g, x, z, as_shift(beta), mean, r, index, eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps = inputs
        _, total, b = output
        ctx.mark_non_differentiable(b)
        ctx.save_for_backward(*tensors, total, b)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        g, x, z, beta, *rest = ctx.saved_tensors
        to_g, to_x = second(u, v, g, x, z, as_shift(beta), *rest, ctx.eps)
        return to_g, to_x, *[None] * 6

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return over_tasks(PooledNormGrad, info, in_dims, args)


def pooled_norm(x: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Of `x` [n, H, W, C] on the CPU, normalised by its own statistics, plus `beta` [C], rectified: the maximum of 2x2 pixels.

    Differentiable any number of times, fast under `vmap`. An odd last row or column is left out of the pooling, as PyTorch
    does, but not of the statistics. Returns [n, H // 2, W // 2, C].
    """
    return PooledNorm.apply(x, beta, eps)[0]
