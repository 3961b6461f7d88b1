"""PyTorch's own convolution and its two derivatives for the images of one task, channels-last, [n, H, W, C]."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.kernels.conv.places import Places, pad


def conv(x: Tensor, weight: Tensor, places: Places) -> Tensor:
    x, padding = _padding(x, places)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, stride=places.stride, padding=padding).permute(0, 2, 3, 1).contiguous()


def input_grad(grad: Tensor, weight: Tensor, places: Places, height: int, width: int) -> Tensor:
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


def weight_grad(x: Tensor, grad: Tensor, places: Places) -> Tensor:
    (x, padding), kernel = _padding(x, places), places.kernel
    weight = torch.empty(
        (grad.shape[-1], x.shape[-1], kernel, kernel), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    found = _backward(grad, x.permute(0, 3, 1, 2), weight, places, padding, [False, True, False])[1]
    return found.contiguous(memory_format=torch.channels_last)


def _padding(x: Tensor, places: Places) -> tuple[Tensor, list[int]]:
    """`x` and what the library shall pad: all of it where it is the same on both sides, else nothing and `x` padded here."""
    (top, bottom), (left, right) = places.padding(*x.shape[1:3])
    if top == bottom and left == right:
        return x, [top, left]
    return pad(x, places), [0, 0]


def _backward(grad: Tensor, x: Tensor, weight: Tensor, places: Places, padding: list[int], mask: list[bool]) -> Any:
    return torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), x, weight, None, [places.stride] * 2, padding, [1, 1], False, [0, 0], 1, mask
    )
