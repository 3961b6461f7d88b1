"""A convolution of few input channels, a shift and ReLU as one operator: max(p.w, 0) over the patches p of images.

Where a patch is small (9 numbers in Omniglot's first layer) the patches of all images are fewer numbers than the layer's
result, which is the largest map of the network. So they are made once (`mamllit.kernels.conv.unfold`), with a one behind each,
whose weight is the shift, and the map is written once and never read but by the next layer: no sum before the shift, no
gradient before the mask. Linear but for the mask, so derivatives of every order are made of two other operators. On a CPU all
work on so many tasks at a time as stay in the cache.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.kernels.norm.kernels import masked
from mamllit.kernels.operators import bordered, borders, inner, operator, tasks_at_once

# ---- the three operators, on p [T, n, h, w, D] and weights [T, O, D] or [O, D] --------------------------------------------


def _rows(p: Tensor) -> Tensor:
    return p.flatten(1, 3)


def _product(p: Tensor, weight: Tensor) -> Tensor:
    return (_rows(p) @ weight.mT).unflatten(1, p.shape[1:4])


def _forward(p: Tensor, weight: Tensor, before: int, after: int) -> list[Tensor]:
    return [F.pad(torch.relu(_product(p, weight)), (0, 0, before, after, before, after))]


def _forward_blocks(p: Tensor, weight: Tensor, before: int, after: int) -> list[Tensor]:
    z = bordered(p, before, after, channels=weight.shape[-2])
    for product, part, edges in _blocks(p, weight, z, before, after):
        torch.clamp_min(product, 0, out=part)
        for edge in edges:
            edge.zero_()
    return [z]


def _blocks(p: Tensor, weight: Tensor, to: Tensor, before: int, after: int) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """For some tasks after the other: the products p.w, in the same memory each time, and the inside and the border of `to`."""
    size = tasks_at_once(to)
    memory = p.new_empty(size, *p.shape[1:4], weight.shape[-2])
    rows = _rows(memory)
    weights = itertools.repeat(weight.mT) if weight.dim() == 2 else weight.mT.split(size)
    edges = [edge.split(size) for edge in borders(to, before, after)]
    parts = zip(_rows(p).split(size), weights, inner(to, before, after).split(size), strict=False)
    for number, (part, matrix, inside) in enumerate(parts):
        if (some := len(part)) < size:
            memory, rows = memory[:some], rows[:some]
        torch.matmul(part, matrix, out=rows)
        yield memory, inside, [edge[number] for edge in edges]


def _first(g: Tensor, z: Tensor, p: Tensor, before: int, after: int) -> list[Tensor]:
    return [_rows(masked(inner(g, before, after), inner(z, before, after))).mT @ _rows(p)]


def _first_blocks(g: Tensor, z: Tensor, p: Tensor, before: int, after: int) -> list[Tensor]:
    to_weight = p.new_empty(len(p), z.shape[-1], p.shape[-1])
    size = tasks_at_once(z)
    inside = (inner(x, before, after).split(size) for x in (g, z))
    for *gz, rows, result in zip(*inside, _rows(p).split(size), to_weight.split(size), strict=True):
        # this way round is two to three times as fast for ten columns, and the copy is small
        result.copy_((rows.mT @ _rows(masked(*gz).contiguous())).mT)
    return [to_weight]


def _second(u: Tensor, z: Tensor, p: Tensor, before: int, after: int) -> list[Tensor]:
    return [F.pad(masked(_product(p, u), inner(z, before, after)), (0, 0, before, after, before, after))]


def _second_blocks(u: Tensor, z: Tensor, p: Tensor, before: int, after: int) -> list[Tensor]:
    to_g = torch.empty_like(z, memory_format=torch.contiguous_format)
    masks = inner(z, before, after).split(tasks_at_once(z))
    for (product, part, edges), mask in zip(_blocks(p, u, to_g, before, after), masks, strict=True):
        torch.ops.aten.threshold_backward.grad_input(product, mask, 0, grad_input=part)
        for edge in edges:
            edge.zero_()
    return [to_g]


BORDER = "int before, int after"
forward = operator("rectified", _forward, _forward_blocks, f"Tensor p, Tensor weight, {BORDER}")
first = operator("rectified_grad", _first, _first_blocks, f"Tensor g, Tensor z, Tensor p, {BORDER}")
second = operator("rectified_grad_grad", _second, _second_blocks, f"Tensor u, Tensor z, Tensor p, {BORDER}")


# ---- derivatives, and the batch of tasks ---------------------------------------------------------------------------------


def _run(function: Any, *values: Any) -> tuple[Tensor, ...]:
    """An operator, on a batch of one task where there is none."""
    if any(isinstance(value, Tensor) and value.dim() == 5 for value in values):
        return tuple(function(*values))
    return tuple(out[0] for out in function(*(value[None] if isinstance(value, Tensor) else value for value in values)))


def _to_patches(g: Tensor, z: Tensor, weight: Tensor, before: int, after: int) -> Tensor:
    """The gradient of the patches, by operators that autograd knows: images are hardly ever differentiated by."""
    to_y = torch.ops.aten.threshold_backward(inner(g, before, after), inner(z, before, after), 0)
    return to_y @ (weight if weight.dim() == 2 else weight[..., None, None, :, :])


class Rectified(torch.autograd.Function):
    """apply(p, weight, before, after) -> (z,); p is [(T,) n, h, w, D], weight [O, D] or [T, O, D]."""

    @staticmethod
    def forward(p: Tensor, weight: Tensor, before: int, after: int) -> tuple[Tensor, ...]:
        return _run(forward, p, weight, before, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        p, weight, *ctx.border = inputs
        ctx.save_for_backward(*output, p, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, p, weight = ctx.saved_tensors
        to_p = _to_patches(g, z, weight, *ctx.border) if ctx.needs_input_grad[0] else None
        (to_weight,) = RectifiedGrad.apply(g, z, p, *ctx.border)
        if weight.dim() == 2 and to_weight.dim() == 3:  # all tasks share it
            to_weight = to_weight.sum(0)
        return to_p, to_weight, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _over_tasks(Rectified, info, in_dims, args)


class RectifiedGrad(torch.autograd.Function):
    """apply(g, z, p, before, after) -> the gradient of the weight, (to_weight,), [O, D] or [T, O, D]."""

    @staticmethod
    def forward(g: Tensor, z: Tensor, p: Tensor, before: int, after: int) -> tuple[Tensor, ...]:
        return _run(first, g, z, p, before, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        g, z, p, *ctx.border = inputs
        ctx.save_for_backward(g, z, p)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, z, p = ctx.saved_tensors
        to_p = _to_patches(g, z, u, *ctx.border) if ctx.needs_input_grad[2] else None
        return RectifiedSpread.apply(u, z, p, *ctx.border)[0], None, to_p, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _over_tasks(RectifiedGrad, info, in_dims, args)


class RectifiedSpread(torch.autograd.Function):
    """apply(u, z, p, before, after) -> (to_g,), the transpose of `RectifiedGrad`."""

    @staticmethod
    def forward(u: Tensor, z: Tensor, p: Tensor, before: int, after: int) -> tuple[Tensor, ...]:
        return _run(second, u, z, p, before, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        u, z, p, *ctx.border = inputs
        ctx.save_for_backward(u, z, p)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        u, z, p = ctx.saved_tensors
        to_p = _to_patches(h, z, u, *ctx.border) if ctx.needs_input_grad[2] else None
        return RectifiedGrad.apply(h, z, p, *ctx.border)[0], None, to_p, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _over_tasks(RectifiedSpread, info, in_dims, args)


def _over_tasks(
    function: Any, info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule under `vmap`: the new dimension comes first, and is folded into one that is there; a weight of all stays one."""
    size, tensors, rest = info.batch_size, list(args[:-2]), args[-2:]
    for i, (value, dim) in enumerate(zip(tensors, in_dims, strict=False)):
        if dim is not None:
            tensors[i] = value.movedim(dim, 0)
        elif not (function is Rectified and value.dim() == 2):
            tensors[i] = value.expand(size, *value.shape)
    nested = next((value.shape[1] for value in tensors if value.dim() == 6), None)
    if nested is not None:
        for i, value in enumerate(tensors):
            if value.dim() == 3:  # a weight of [B, O, D] for [B, T, ...] images
                value = value.unsqueeze(1).expand(size, nested, *value.shape[1:])
            tensors[i] = value if value.dim() == 2 else value.flatten(0, 1)
    out = function.apply(*tensors, *rest)
    return tuple(value.unflatten(0, (size, nested)) for value in out) if nested is not None else out, (0,) * len(out)


def rectified(p: Tensor, weight: Tensor, border: tuple[int, int] = (0, 0)) -> Tensor:
    """max(p @ weight', 0) for `p` [n, h, w, D] and `weight` [O, D], with `border` rows of zeros before and after.

    Differentiable any number of times, fast under `vmap`. Returns [n, h + sum(border), w + sum(border), O].
    """
    return Rectified.apply(p, weight, *border)[0]
