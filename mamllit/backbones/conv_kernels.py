"""The arithmetic of a convolution and of its two derivatives, for one task or for a batch of tasks, in the faster of two ways.

A batch of tasks runs as one batched product over patches where these are small, else task by task through the library's
convolution. Shapes as in `mamllit.backbones.convolution`; nothing here is differentiable.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Measured on two cores of a Zen 3: a task's patches above this size no longer stay in the cache, and the library's convolution,
# task by task, beats the product; so it does where a product would be thin, with few channels.
PATCH_BYTES, THIN_CHANNELS, THIN_ROWS = 2**20, 4, 2000
BLOCK_BYTES = 2**22  # of the patches that are made at once


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) for one dimension; asymmetric where the total is odd."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolution of `x` [(T,) n, H, W, C] with `weight` [(T,) O, C, k, k]: [(T,) n, ceil(H / stride), ceil(W / stride), O]."""
    if x.dim() == 4:
        return _native(x, weight, stride)
    kernel, (_, rows, columns) = weight.shape[-1], _output_size(x, stride)
    out = x.new_empty(*x.shape[:2], rows, columns, weight.shape[1])
    for tasks in _blocks(x, weight, stride):
        if tasks is None:
            for task in range(len(x)):
                out[task] = _native(x[task], weight[task], stride)
        else:
            torch.bmm(_patches(x[tasks], kernel, stride), _matrix(weight[tasks]).mT, out=out[tasks].flatten(1, 3))
    return out


def conv_input_grad(grad: Tensor, weight: Tensor, stride: int, height: int, width: int) -> Tensor:
    """The gradient of `conv` with respect to its images [(T,) n, height, width, C], for `grad` [(T,) n, h, w, O]."""
    if grad.dim() == 4:
        return _native_input_grad(grad, weight, stride, height, width)
    channels = weight.shape[2]
    out = grad.new_empty(*grad.shape[:2], height, width, channels)
    for tasks in _blocks(out, weight, stride):
        if tasks is None:
            for task in range(len(grad)):
                out[task] = _native_input_grad(grad[task], weight[task], stride, height, width)
        else:
            patches = torch.bmm(grad[tasks].flatten(1, 3), _matrix(weight[tasks]))
            out[tasks] = _fold(patches, out[tasks].shape, weight.shape[-1], stride)
    return out


def conv_weight_grad(x: Tensor, grad: Tensor, stride: int, kernel: int) -> Tensor:
    """The gradient of `conv` with respect to its weight [(T,) O, C, kernel, kernel], in channels-last memory order."""
    if x.dim() == 4:
        return _native_weight_grad(x, grad, stride, kernel)
    filters, channels = grad.shape[-1], x.shape[-1]
    out = x.new_empty(len(x), filters, kernel, kernel, channels)
    for tasks in _blocks(x, out.permute(0, 1, 4, 2, 3), stride):
        if tasks is None:
            for task in range(len(x)):
                out[task] = _native_weight_grad(x[task], grad[task], stride, kernel).permute(0, 2, 3, 1)
        else:
            patches = _patches(x[tasks], kernel, stride)
            torch.bmm(grad[tasks].flatten(1, 3).mT, patches, out=out[tasks].flatten(2))
    return out.permute(0, 1, 4, 2, 3)


# ---- the two ways ----------------------------------------------------------------------------------------------------


def _blocks(x: Tensor, weight: Tensor, stride: int) -> list[slice | None]:
    """Slices of tasks whose patches are made at once; [None] where the library's convolution, task by task, is faster."""
    tasks = len(x)
    if x.device.type != "cpu":
        return [slice(0, tasks)]
    n, rows, columns = _output_size(x, stride)
    places, channels = n * rows * columns, x.shape[-1]
    one = places * channels * weight.shape[-1] ** 2 * x.element_size()
    if one > PATCH_BYTES or (channels <= THIN_CHANNELS and places > THIN_ROWS):
        return [None]
    size = max(BLOCK_BYTES // one, 1)
    return [slice(start, start + size) for start in range(0, tasks, size)]


def _output_size(x: Tensor, stride: int) -> tuple[int, int, int]:
    return x.shape[-4], -(-x.shape[-3] // stride), -(-x.shape[-2] // stride)


def _matrix(weight: Tensor) -> Tensor:
    """[T, O, C, k, k] -> [T, O, k * k * C], a view where the memory order is channels-last."""
    return weight.permute(0, 1, 3, 4, 2).flatten(2)


def _pad(x: Tensor, kernel: int, stride: int) -> Tensor:
    top, bottom = same_padding(x.shape[-3], kernel, stride)
    left, right = same_padding(x.shape[-2], kernel, stride)
    return F.pad(x, (0, 0, left, right, top, bottom)) if top or bottom or left or right else x.contiguous()


def _patches(x: Tensor, kernel: int, stride: int) -> Tensor:
    """[T, n, H, W, C] -> [T, n * h * w, k * k * C]: each row the pixels under the kernel at one place."""
    n, rows, columns = _output_size(x, stride)
    padded, channels = _pad(x, kernel, stride), x.shape[-1]
    task, image, row, column, _ = padded.stride()
    view = padded.as_strided(
        (len(x), n, rows, columns, kernel, kernel * channels), (task, image, row * stride, column * stride, row, 1)
    )
    return view.reshape(len(x), n * rows * columns, kernel**2 * channels)


def _fold(patches: Tensor, shape: torch.Size, kernel: int, stride: int) -> Tensor:
    """The transpose of `_patches`: sums [T, n * h * w, k * k * C] into images of `shape` [T, n, H, W, C]."""
    tasks, n, height, width, channels = shape
    rows, columns = -(-height // stride), -(-width // stride)
    (top, _), (left, _) = same_padding(height, kernel, stride), same_padding(width, kernel, stride)
    patches = patches.view(tasks, n, rows, columns, kernel, kernel, channels)
    tall, wide = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
    out = patches.new_zeros(tasks, n, max(tall, top + height), max(wide, left + width), channels)
    for i in range(kernel):
        for j in range(kernel):
            out[:, :, i : i + tall - kernel + 1 : stride, j : j + wide - kernel + 1 : stride] += patches[..., i, j, :]
    return out[:, :, top : top + height, left : left + width]


def _native(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    x, padding = _native_padding(x, weight.shape[-1], stride)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, stride=stride, padding=padding).permute(0, 2, 3, 1).contiguous()


def _native_input_grad(grad: Tensor, weight: Tensor, stride: int, height: int, width: int) -> Tensor:
    kernel = weight.shape[-1]
    (top, bottom), (left, right) = same_padding(height, kernel, stride), same_padding(width, kernel, stride)
    if top == bottom and left == right:
        padded = (len(grad), weight.shape[1], height, width)
        padding = [top, left]
    else:
        padded = (len(grad), weight.shape[1], height + top + bottom, width + left + right)
        padding = [0, 0]
    image = torch.empty(
        padded, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )  # only its size is read
    found = _backward(grad, image, weight, stride, padding, [True, False, False])[0].permute(0, 2, 3, 1)
    if padding == [0, 0]:
        found = found[:, top : top + height, left : left + width]
    return found.contiguous()


def _native_weight_grad(x: Tensor, grad: Tensor, stride: int, kernel: int) -> Tensor:
    x, padding = _native_padding(x, kernel, stride)
    weight = torch.empty(
        (grad.shape[-1], x.shape[-1], kernel, kernel), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    found = _backward(grad, x.permute(0, 3, 1, 2), weight, stride, padding, [False, True, False])[1]
    return found.contiguous(memory_format=torch.channels_last)


def _native_padding(x: Tensor, kernel: int, stride: int) -> tuple[Tensor, list[int]]:
    """`x` and what the library shall pad: all of it where it is the same on both sides, else nothing and `x` padded here."""
    (top, bottom), (left, right) = (same_padding(size, kernel, stride) for size in x.shape[1:3])
    if top == bottom and left == right:
        return x, [top, left]
    return _pad(x, kernel, stride), [0, 0]


def _backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], mask: list[bool]) -> Any:
    return torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, mask
    )
