"""The patches of images as a tensor, for a layer of few input channels. Linear, so its derivatives are convolutions."""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from mamllit.kernels.conv.convolution import ConvInputGrad
from mamllit.kernels.conv.kernels import patch_view
from mamllit.kernels.conv.places import Places
from mamllit.kernels.operators import opaque


def _unfold(x: Tensor, kernel: int, stride: int, same: bool) -> Tensor:
    """[(T,) n, H, W, C] -> [(T,) n, h, w, k k C + 1]: the pixels under the kernel at each place, then a one."""
    view = patch_view(x if x.dim() == 5 else x[None], Places(kernel, stride, same))
    out = x.new_empty(*view.shape[:-2], view.shape[-2] * view.shape[-1] + 1)
    out[..., :-1].unflatten(-1, view.shape[-2:]).copy_(view)
    out[..., -1] = 1
    return out if x.dim() == 5 else out[0]


unfold_op = opaque("unfold", _unfold)


@register_fake("mamllit::unfold")
def _(x: Tensor, kernel: int, stride: int, same: bool) -> Tensor:
    images, rows, columns = Places(kernel, stride, same).of(x)
    return x.new_empty(*x.shape[:-4], images, rows, columns, kernel**2 * x.shape[-1] + 1)


class Unfold(torch.autograd.Function):
    """apply(x, kernel, stride, same), see `unfold_op`."""

    @staticmethod
    def forward(x: Tensor, kernel: int, stride: int, same: bool) -> Tensor:
        return unfold_op(x, kernel, stride, same)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.numbers = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, stride, same = ctx.numbers
        size = grad.shape[-1] - 1
        one = torch.eye(size, dtype=grad.dtype, device=grad.device).view(size, kernel, kernel, -1).movedim(-1, -3)
        one = one.expand(*grad.shape[:-4], *one.shape)
        return ConvInputGrad.apply(grad[..., :-1].contiguous(), one, stride, same, *ctx.shape[-3:-1]), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        x = args[0].movedim(in_dims[0], 0)
        if x.dim() == 5:
            return Unfold.apply(x, *args[1:]), 0
        return Unfold.apply(x.flatten(0, 1), *args[1:]).unflatten(0, x.shape[:2]), 0


def unfold(x: Tensor, kernel: int, stride: int, same: bool) -> Tensor:
    """Patches of channels-last images, [n, H, W, C] -> [n, h, w, k k C + 1], the last number a one; fast under `vmap`."""
    return Unfold.apply(x, kernel, stride, same)
