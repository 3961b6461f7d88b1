"""The arithmetic of a convolution and of its two derivatives, for one task or for a batch of tasks, in the faster of two ways.

A batch of tasks runs as one batched product over patches where these are small, else task by task through the library's
convolution. Shapes as in `mamllit.backbones.convolution`; nothing here is differentiable.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Measured on two cores of a Zen 3: where a task's patches are larger than this, the library's convolution, task by task, beats
# the product. The limit is higher for stride 2, whose patches repeat a pixel less often, and for the gradient of a weight, at
# which the library is slow (half the rate of its others); images of few channels make thin products, for which it is lower.
PATCH_BYTES, WEIGHT_PATCH_BYTES, THIN_CHANNELS, THIN_ROWS = 2**20, 2**22, 4, 4000
BLOCK_BYTES = 2**22  # of the patches that are made at once


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) for one dimension; asymmetric where the total is odd."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def output_size(size: int, kernel: int, stride: int, same: bool) -> int:
    """Places of a kernel along a dimension, with SAME padding or with none."""
    return -(-size // stride) if same else (size - kernel) // stride + 1


class Places(NamedTuple):
    """Where a kernel of side `kernel` is put on images [..., n, H, W, C]: every `stride` pixels, padded as SAME or not."""

    kernel: int
    stride: int
    same: bool

    def of(self, x: Tensor) -> tuple[int, int, int]:
        """Images, rows and columns of the result."""
        rows, columns = (output_size(side, *self) for side in x.shape[-3:-1])
        return x.shape[-4], rows, columns

    def padding(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(top, bottom), (left, right)."""
        if not self.same:
            return (0, 0), (0, 0)
        return same_padding(height, self.kernel, self.stride), same_padding(width, self.kernel, self.stride)


def conv(x: Tensor, weight: Tensor, stride: int, same: bool) -> Tensor:
    """Convolution of `x` [(T,) n, H, W, C] with `weight` [(T,) O, C, k, k], padded as SAME or not at all: [(T,) n, h, w, O]."""
    places = Places(weight.shape[-1], stride, same)
    if x.dim() == 4:
        return _native(x, weight, places)
    _, rows, columns = places.of(x)
    out = x.new_empty(*x.shape[:2], rows, columns, weight.shape[1])
    scratch = Scratch()
    for tasks in _blocks(x, places, PATCH_BYTES * stride**2):
        if tasks is None:
            for task in range(len(x)):
                out[task] = _native(x[task], weight[task], places)
        else:
            torch.bmm(patches(x[tasks], places, scratch), _matrix(weight[tasks]).mT, out=out[tasks].flatten(1, 3))
    return out


def conv_input_grad(grad: Tensor, weight: Tensor, stride: int, same: bool, height: int, width: int) -> Tensor:
    """The gradient of `conv` with respect to its images [(T,) n, height, width, C], for `grad` [(T,) n, h, w, O]."""
    places = Places(weight.shape[-1], stride, same)
    if grad.dim() == 4:
        return _native_input_grad(grad, weight, places, height, width)
    channels = weight.shape[2]
    out, scratch = grad.new_empty(*grad.shape[:2], height, width, channels), Scratch()
    for tasks in _blocks(out, places, PATCH_BYTES * stride**2):
        if tasks is None:
            for task in range(len(grad)):
                out[task] = _native_input_grad(grad[task], weight[task], places, height, width)
        else:
            images, matrix = grad[tasks].flatten(1, 3), _matrix(weight[tasks])
            columns = scratch(grad, (*images.shape[:2], matrix.shape[2]))
            _fold(torch.bmm(images, matrix, out=columns), out[tasks], grad.shape[-3:-1], places)
    return out


def conv_weight_grad(x: Tensor, grad: Tensor, stride: int, same: bool, kernel: int) -> Tensor:
    """The gradient of `conv` with respect to its weight [(T,) O, C, kernel, kernel], in channels-last memory order."""
    places = Places(kernel, stride, same)
    if x.dim() == 4:
        return _native_weight_grad(x, grad, places)
    filters, channels = grad.shape[-1], x.shape[-1]
    out, scratch = x.new_empty(len(x), filters, kernel, kernel, channels), Scratch()
    for tasks in _blocks(x, places, WEIGHT_PATCH_BYTES):
        if tasks is None:
            for task in range(len(x)):
                out[task] = _native_weight_grad(x[task], grad[task], places).permute(0, 2, 3, 1)
            continue
        rows, some = patches(x[tasks], places, scratch), grad[tasks].flatten(1, 3)
        if channels <= THIN_CHANNELS:  # this way round is two to three times as fast for nine columns, and the copy is small
            out[tasks].flatten(2).copy_(torch.bmm(rows.mT, some).mT)
        else:
            torch.bmm(some.mT, rows, out=out[tasks].flatten(2))
    return out.permute(0, 1, 4, 2, 3)


# ---- the two ways ----------------------------------------------------------------------------------------------------


def _blocks(x: Tensor, places: Places, limit: int) -> list[slice | None]:
    """Slices of tasks whose patches are made at once; [None] where the library's convolution, task by task, is faster."""
    tasks = len(x)
    if x.device.type != "cpu":
        return [slice(0, tasks)]
    n, rows, columns = places.of(x)
    count, channels = n * rows * columns, x.shape[-1]
    one = count * channels * places.kernel**2 * x.element_size()
    if one > limit or (channels <= THIN_CHANNELS and count > THIN_ROWS):
        return [None]
    size = max(BLOCK_BYTES // one, 1)
    return [slice(start, start + size) for start in range(0, tasks, size)]


def _matrix(weight: Tensor) -> Tensor:
    """[T, O, C, k, k] -> [T, O, k * k * C], a view where the memory order is channels-last."""
    return weight.permute(0, 1, 3, 4, 2).flatten(2)


def _pad(x: Tensor, places: Places) -> Tensor:
    *rest, height, width, channels = x.shape
    (top, bottom), (left, right) = places.padding(height, width)
    if not (top or bottom or left or right):
        return x.contiguous()
    out = x.new_empty(*rest, top + height + bottom, left + width + right, channels)
    out[..., top : top + height, left : left + width, :] = x  # F.pad first fills all of it with zeros
    for dim, before, size in ((-3, top, height), (-2, left, width)):
        for start, stop in ((0, before), (before + size, out.shape[dim])):
            if stop > start:
                out.narrow(dim, start, stop - start).zero_()
    return out


class Scratch:
    """Memory for one block's patches, the same for the next: it is in the cache then."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None

    def __call__(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """An empty tensor of `shape`; the first call has the largest."""
        size = math.prod(shape)
        if self.memory is None:
            self.memory = like.new_empty(size)
        return self.memory[:size].view(shape)


def patches(x: Tensor, places: Places, scratch: Scratch) -> Tensor:
    """[T, n, H, W, C] -> [T, n * h * w, k * k * C]: each row the pixels under the kernel at one place."""
    n, rows, columns = places.of(x)
    padded, channels, (kernel, stride, _) = _pad(x, places), x.shape[-1], places
    task, image, row, column, _ = padded.stride()
    view = padded.as_strided(
        (len(x), n, rows, columns, kernel, kernel * channels),
        (task, image, row * stride, column * stride, row, 1),
        padded.storage_offset(),
    )
    out = scratch(x, (len(x), n * rows * columns, kernel**2 * channels))
    out.view(view.shape).copy_(view)
    return out


def _fold(folded: Tensor, images: Tensor, result: torch.Size, places: Places) -> None:
    """The transpose of `patches`: sums [T, n * h * w, k * k * C] into `images` [T, n, H, W, C]; `result`: (h, w)."""
    (tasks, n, height, width, channels), (rows, columns), (kernel, stride, _) = images.shape, result, places
    (top, bottom), (left, right) = places.padding(height, width)
    folded = folded.view(tasks, n, rows, columns, kernel, kernel, channels)
    out = images
    if top or bottom or left or right:
        out = folded.new_empty(tasks, n, top + height + bottom, left + width + right, channels)
    tall, wide = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    together = stride if kernel >= stride else 0  # so many pixels of a row, neighbours in memory, go at once
    for i in range(together):  # these offsets reach every pixel once, but for the last ones
        lines = out[:, :, i : i + tall : stride, : columns * stride].unflatten(-2, (columns, stride))
        lines.copy_(folded[..., i, :stride, :])
    out[:, :, rows * together :].zero_()  # by now most of it is in the cache, which writing single columns first would not use
    out[:, :, : rows * together, columns * together :].zero_()
    for i in range(kernel):
        if together and i >= together:
            lines = out[:, :, i : i + tall : stride, : columns * stride].unflatten(-2, (columns, stride))
            lines.add_(folded[..., i, :stride, :])
        for j in range(together, kernel):
            out[:, :, i : i + tall : stride, j : j + wide : stride].add_(folded[..., i, j, :])
    if out is not images:
        images.copy_(out[:, :, top : top + height, left : left + width])


def _native(x: Tensor, weight: Tensor, places: Places) -> Tensor:
    x, padding = _native_padding(x, places)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, stride=places.stride, padding=padding).permute(0, 2, 3, 1).contiguous()


def _native_input_grad(grad: Tensor, weight: Tensor, places: Places, height: int, width: int) -> Tensor:
    (top, bottom), (left, right) = places.padding(height, width)
    if top == bottom and left == right:
        padded, padding = (len(grad), weight.shape[1], height, width), [top, left]
    else:
        padded, padding = (len(grad), weight.shape[1], height + top + bottom, width + left + right), [0, 0]
    # only its size is read
    image = torch.empty(padded, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    found = _backward(grad, image, weight, places, padding, [True, False, False])[0].permute(0, 2, 3, 1)
    if padding == [0, 0]:
        found = found[:, top : top + height, left : left + width]
    return found.contiguous()


def _native_weight_grad(x: Tensor, grad: Tensor, places: Places) -> Tensor:
    (x, padding), kernel = _native_padding(x, places), places.kernel
    weight = torch.empty(
        (grad.shape[-1], x.shape[-1], kernel, kernel), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    found = _backward(grad, x.permute(0, 3, 1, 2), weight, places, padding, [False, True, False])[1]
    return found.contiguous(memory_format=torch.channels_last)


def _native_padding(x: Tensor, places: Places) -> tuple[Tensor, list[int]]:
    """`x` and what the library shall pad: all of it where it is the same on both sides, else nothing and `x` padded here."""
    (top, bottom), (left, right) = places.padding(*x.shape[1:3])
    if top == bottom and left == right:
        return x, [top, left]
    return _pad(x, places), [0, 0]


def _backward(grad: Tensor, x: Tensor, weight: Tensor, places: Places, padding: list[int], mask: list[bool]) -> Any:
    return torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), x, weight, None, [places.stride] * 2, padding, [1, 1], False, [0, 0], 1, mask
    )
