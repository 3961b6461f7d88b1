"""A batch norm after a convolution of few input channels, folded into the convolution's weights.

A convolution gives w.p at every place, with the patch p of k k C numbers under the kernel. Its mean over all places is w.m, and
its variance w'Sw, with the mean m and the covariance S of the patches. Where a patch is small (9 numbers in Omniglot's first
layer) both are cheap, and do not depend on what is learned. So the norm becomes a factor on the weights and a shift, and the
largest maps of a network are passed over neither for their statistics nor, on the way back, for the statistics' derivatives.
S. Ioffe, C. Szegedy: Batch Normalization, ICML 2015, section 3, in exact arithmetic.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, register_fake

from mamllit.backbones.conv_kernels import BLOCK_BYTES, Places, Scratch, patches
from mamllit.backbones.convolution import Conv, ConvInputGrad

SMALL_PATCH = 16  # numbers; the covariance of 27 (three colours) was measured to cost what it spares


@custom_op("mamllit::patch_moments", mutates_args=())
def patch_moments_op(x: Tensor, stride: int, same: bool, kernel: int) -> tuple[Tensor, Tensor]:
    """Mean [(T,) D] and covariance [(T,) D, D] of the patches of `x` [(T,) n, H, W, C] in float64; D = k k C, channels last."""
    batch, places = (x if x.dim() == 5 else x[None]), Places(kernel, stride, same)
    tasks, channels = len(batch), x.shape[-1]
    images, rows, columns = places.of(batch)
    size = channels * kernel**2
    # from numbers around zero, so that nothing is lost where the mean is large
    centre = batch.mean((1, 2, 3)).double().repeat(1, kernel**2)[:, None]
    total = torch.zeros(tasks, size, dtype=torch.float64, device=x.device)
    products = torch.zeros(tasks, size, size, dtype=torch.float64, device=x.device)
    scratch = Scratch()
    one = rows * columns * size * x.element_size()
    some_images = images if x.device.type != "cpu" else min(max(BLOCK_BYTES // one, 1), images)
    some_tasks = tasks if x.device.type != "cpu" else max(BLOCK_BYTES // (one * images), 1)
    for task in range(0, tasks, some_tasks):
        here = slice(task, task + some_tasks)
        for image in range(0, images, some_images):
            part = patches(batch[here, image : image + some_images], places, scratch).double().sub_(centre[here])
            total[here] += part.sum(1)
            products[here].baddbmm_(part.mT, part)
    count = images * rows * columns
    total /= count
    covariance = products / count - total[:, :, None] * total[:, None]
    mean = total + centre[:, 0]
    return (mean, covariance) if x.dim() == 5 else (mean[0], covariance[0])


@register_fake("mamllit::patch_moments")
def _(x: Tensor, stride: int, same: bool, kernel: int) -> tuple[Tensor, Tensor]:
    size = x.shape[-1] * kernel**2
    mean = x.new_empty(*x.shape[:-4], size, dtype=torch.float64)
    return mean, mean.new_empty(*mean.shape, size)


class PatchMoments(torch.autograd.Function):
    """apply(x, stride, same, kernel) -> mean and covariance, see `patch_moments_op`; differentiable to any order."""

    @staticmethod
    def forward(x: Tensor, stride: int, same: bool, kernel: int) -> tuple[Tensor, Tensor]:
        return patch_moments_op(x, stride, same, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *ctx.numbers = inputs
        ctx.save_for_backward(x, output[0])

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_covariance: Tensor) -> tuple[Tensor | None, ...]:
        (x, mean), (stride, same, kernel) = ctx.saved_tensors, ctx.numbers
        images, rows, columns = Places(kernel, stride, same).of(x)
        count, channels, size = images * rows * columns, x.shape[-1], mean.shape[-1]
        both = (to_covariance + to_covariance.mT) / count
        shift = to_mean / count - (mean[..., None, :] @ both).squeeze(-2)
        weight = both.to(x.dtype).unflatten(-1, (kernel, kernel, channels)).movedim(-1, -3)
        one = torch.eye(size, dtype=x.dtype, device=x.device).view(size, kernel, kernel, channels).movedim(-1, -3)
        to_patches = Conv.apply(x, weight, stride, same) + shift.to(x.dtype)[..., None, None, None, :]
        one = one.expand(*x.shape[:-4], *one.shape)
        return ConvInputGrad.apply(to_patches, one, stride, same, *x.shape[-3:-1]), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        x = args[0].movedim(in_dims[0], 0)
        if x.dim() == 5:
            return PatchMoments.apply(x, *args[1:]), (0, 0)
        mean, covariance = PatchMoments.apply(x.flatten(0, 1), *args[1:])
        return (mean.unflatten(0, x.shape[:2]), covariance.unflatten(0, x.shape[:2])), (0, 0)


def fold(x: Tensor, weight: Tensor, stride: int, same: bool, eps: float) -> tuple[Tensor, Tensor]:
    """The weight [O, C, k, k] whose convolution has variance one over `x` [n, H, W, C], and that convolution's mean [O].

    All in float64: most of a picture's covariance is in its brightness, to which an edge filter is blind.
    """
    mean, covariance = PatchMoments.apply(x, stride, same, weight.shape[-1])
    rows = weight.permute(0, 2, 3, 1).flatten(1).double()
    r = torch.rsqrt(((rows @ covariance) * rows).sum(-1) + eps)
    return weight * r.to(weight.dtype)[:, None, None, None], ((rows @ mean) * r).to(weight.dtype)
