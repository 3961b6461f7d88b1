"""A 2-D convolution made for meta-learning: per-task weights, and derivatives of any order, all at the speed of a plain one.

Under `torch.func.vmap` over weights, PyTorch's convolution becomes a grouped one, and its second derivative a convolution
with a kernel as large as the image; on a CPU both are many times slower than the arithmetic in them. Here a convolution and
its two derivatives are three operators, `conv`, `conv_input_grad` and `conv_weight_grad`. Each is linear in both arguments, so
the derivative of each is made of the other two, and no other ever appears. Each has a rule for `vmap`: weights that all tasks
share (the first inner step) make one convolution of all images, weights per task a batch that runs in the faster of two ways.

Images are channels-last, [n, H, W, C], a batch of tasks [T, n, H, W, C]; padding is TensorFlow's SAME, or none. Weights have
PyTorch's shape, [O, C, k, k] or [T, O, C, k, k], best in channels-last memory order, which both ways read without copying.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from mamllit.kernels.conv import kernels as conv_kernels
from mamllit.kernels.conv import places as conv_places
from mamllit.kernels.operators import opaque

conv_op = opaque("conv", conv_kernels.conv)
conv_input_grad_op = opaque("conv_input_grad", conv_kernels.conv_input_grad)
# no function of this file calls it: `mamllit.engine.recording` puts it in place of a sum
conv_input_grad_sum_op = opaque("conv_input_grad_sum", conv_kernels.conv_input_grad_sum)
conv_weight_grad_op = opaque("conv_weight_grad", conv_kernels.conv_weight_grad)

# ---- shapes, derivatives, and the batch of tasks ------------------------------------------------------------------------


@register_fake("mamllit::conv")
def _(x: Tensor, weight: Tensor, stride: int, same: bool) -> Tensor:
    size = (conv_places.output_size(side, weight.shape[-1], stride, same) for side in x.shape[-3:-1])
    return x.new_empty(*x.shape[:-3], *size, weight.shape[-4])


@register_fake("mamllit::conv_input_grad")
def _(grad: Tensor, weight: Tensor, stride: int, same: bool, height: int, width: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-3], height, width, weight.shape[-3])


@register_fake("mamllit::conv_input_grad_sum")
def _(
    first: Tensor, first_weight: Tensor, second: Tensor, second_weight: Tensor, stride: int, same: bool, height: int, width: int
) -> Tensor:
    return first.new_empty(*first.shape[:-3], height, width, first_weight.shape[-3])


@register_fake("mamllit::conv_weight_grad")
def _(x: Tensor, grad: Tensor, stride: int, same: bool, kernel: int) -> Tensor:
    return x.new_empty(*x.shape[:-4], grad.shape[-1], kernel, kernel, x.shape[-1]).movedim(-1, -3)


class _Bilinear(torch.autograd.Function):
    """What the three operators share under autograd and `vmap`: two tensors, then numbers."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[2:]


class Conv(_Bilinear):
    """`conv` under autograd and `vmap`: apply(x, weight, stride, same)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, same: bool) -> Tensor:
        return conv_op(x, weight, stride, same)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x, weight), (stride, same) = ctx.saved_tensors, ctx.rest
        to_x = ConvInputGrad.apply(grad, weight, stride, same, *x.shape[-3:-1]) if ctx.needs_input_grad[0] else None
        to_weight = ConvWeightGrad.apply(x, grad, stride, same, weight.shape[-1]) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return _over_tasks(Conv, True, info, in_dims, *args)


class ConvInputGrad(_Bilinear):
    """`conv_input_grad` under autograd and `vmap`: apply(grad, weight, stride, same, height, width)."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, stride: int, same: bool, height: int, width: int) -> Tensor:
        return conv_input_grad_op(grad, weight, stride, same, height, width)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        (grad, weight), (stride, same, _, _) = ctx.saved_tensors, ctx.rest
        to_grad = Conv.apply(outer, weight, stride, same) if ctx.needs_input_grad[0] else None
        to_weight = ConvWeightGrad.apply(outer, grad, stride, same, weight.shape[-1]) if ctx.needs_input_grad[1] else None
        return to_grad, to_weight, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return _over_tasks(ConvInputGrad, True, info, in_dims, *args)


class ConvWeightGrad(_Bilinear):
    """`conv_weight_grad` under autograd and `vmap`: apply(x, grad, stride, same, kernel)."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, stride: int, same: bool, kernel: int) -> Tensor:
        return conv_weight_grad_op(x, grad, stride, same, kernel)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        (x, grad), (stride, same, _) = ctx.saved_tensors, ctx.rest
        to_x = ConvInputGrad.apply(grad, outer, stride, same, *x.shape[-3:-1]) if ctx.needs_input_grad[0] else None
        return to_x, Conv.apply(x, outer, stride, same) if ctx.needs_input_grad[1] else None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return _over_tasks(ConvWeightGrad, False, info, in_dims, *args)


def _over_tasks(operator: Any, shared: bool, info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    """The rule of an operator under `vmap`: the new dimension comes first, and is folded into one that is there already.

    `shared`: where the weight is the same for all tasks, the batch is one call over all images.
    """
    size = info.batch_size
    first, second = (a if d is None else a.movedim(d, 0) for a, d in zip(args[:2], in_dims[:2], strict=True))
    if shared and in_dims[1] is None and second.dim() == 4:
        out = operator.apply(first.flatten(0, 1), second, *args[2:])
        return out.unflatten(0, (size, -1)), 0
    first, second = (a.expand(size, *a.shape) if d is None else a for a, d in zip((first, second), in_dims[:2], strict=True))
    if first.dim() == 5:
        return operator.apply(first, second, *args[2:]), 0
    out = operator.apply(first.flatten(0, 1), second.flatten(0, 1), *args[2:])
    return out.unflatten(0, (size, -1)), 0


def conv(x: Tensor, weight: Tensor, stride: int, same: bool = True) -> Tensor:
    """Convolution of `x` [n, H, W, C] with `weight` [O, C, k, k], differentiable to any order, fast under `vmap`.

    `same`: pad as TensorFlow's SAME does; else not at all (VALID), for images that have their border.
    Returns [n, ceil(H / stride), ceil(W / stride), O], or [n, (H - k) // stride + 1, ...]. Under `torch.autocast` in its data
    type, as PyTorch's convolution.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):  # which knows PyTorch's operators only
        low = torch.get_autocast_dtype(device)
        x, weight = x.to(low), weight.to(low)
    return Conv.apply(x, weight, stride, same)
