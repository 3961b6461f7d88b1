"""The arithmetic of a convolution and of its two derivatives, for one task or for a batch of tasks, in the faster of two ways.

A batch of tasks runs as one batched product over patches where these are small, else task by task through the library's
convolution. Shapes as in `mamllit.kernels.conv.convolution`; nothing here is differentiable.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mamllit.kernels.conv import library as conv_library
from mamllit.kernels.conv.places import Places, pad
from mamllit.kernels.operators import balanced

# Measured on two cores of a Zen 3: where a task's patches are larger than this, the library's convolution, task by task, beats
# the product. The limit is higher for stride 2, whose patches repeat a pixel less often, and for the gradient of a weight, at
# which the library is slow (half the rate of its others); images of few channels make thin products, for which it is lower.
PATCH_BYTES, WEIGHT_PATCH_BYTES, THIN_CHANNELS, THIN_ROWS = 2**20, 2**22, 4, 4000
BLOCK_BYTES = 2**22  # of the patches that are made at once: in the cache, though smaller blocks mean more calls


def conv(x: Tensor, weight: Tensor, stride: int, same: bool) -> Tensor:
    """Convolution of `x` [(T,) n, H, W, C] with `weight` [(T,) O, C, k, k], padded as SAME or not at all: [(T,) n, h, w, O]."""
    places = Places(weight.shape[-1], stride, same)
    if x.dim() == 4:
        return conv_library.conv(x, weight, places)
    _, rows, columns = places.of(x)
    out = x.new_empty(*x.shape[:2], rows, columns, weight.shape[1])
    size = _block_size(x, places, PATCH_BYTES * stride**2)
    if size is None:
        for task in range(len(x)):
            out[task] = conv_library.conv(x[task], weight[task], places)
        return out
    matrices, results = _matrix(weight).mT.split(size), out.flatten(1, 3).split(size)
    for patches, matrix, result in zip(_patches(x, places, size), matrices, results, strict=True):
        torch.bmm(patches, matrix, out=result)
    return out


def conv_input_grad(grad: Tensor, weight: Tensor, stride: int, same: bool, height: int, width: int) -> Tensor:
    """The gradient of `conv` with respect to its images [(T,) n, height, width, C], for `grad` [(T,) n, h, w, O]."""
    return _input_grad([grad], [weight], Places(weight.shape[-1], stride, same), height, width)


def conv_input_grad_sum(
    first: Tensor, first_weight: Tensor, second: Tensor, second_weight: Tensor, stride: int, same: bool, height: int, width: int
) -> Tensor:
    """`conv_input_grad` of `first` plus that of `second`, as one product of twice the channels."""
    places = Places(first_weight.shape[-1], stride, same)
    return _input_grad([first, second], [first_weight, second_weight], places, height, width)


def _input_grad(grads: list[Tensor], weights: list[Tensor], places: Places, height: int, width: int) -> Tensor:
    """The sum over the lists' pairs."""
    grad, channels = grads[0], weights[0].shape[-3]
    if grad.dim() == 4:
        return conv_library.input_grad(_joined(grads, -1), _joined(weights, 0), places, height, width)
    out = grad.new_empty(*grad.shape[:2], height, width, channels)
    size = _block_size(out, places, PATCH_BYTES * places.stride**2)
    if size is None:
        for task in range(len(grad)):
            image, weight = _joined([g[task] for g in grads], -1), _joined([w[task] for w in weights], 0)
            out[task] = conv_library.input_grad(image, weight, places, height, width)
        return out
    folding = Folding(out, grad.shape[-3:-1], places, size)
    images = [g.flatten(1, 3).split(size) for g in grads]
    matrices = [_matrix(w).split(size) for w in weights]
    for number in range(len(images[0])):
        image, matrix = _joined([parts[number] for parts in images], -1), _joined([parts[number] for parts in matrices], 1)
        torch.bmm(image, matrix, out=folding.patches[: len(image)])
        folding(number)
    return out


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if parts[1:] else parts[0]


def conv_weight_grad(x: Tensor, grad: Tensor, stride: int, same: bool, kernel: int) -> Tensor:
    """The gradient of `conv` with respect to its weight [(T,) O, C, kernel, kernel], in channels-last memory order."""
    places = Places(kernel, stride, same)
    if x.dim() == 4:
        return conv_library.weight_grad(x, grad, places)
    filters, channels = grad.shape[-1], x.shape[-1]
    out = x.new_empty(len(x), filters, kernel, kernel, channels)
    size = _block_size(x, places, WEIGHT_PATCH_BYTES)
    if size is None:
        for task in range(len(x)):
            out[task] = conv_library.weight_grad(x[task], grad[task], places).permute(0, 2, 3, 1)
        return out.permute(0, 1, 4, 2, 3)
    parts, results = grad.flatten(1, 3).split(size), out.flatten(2).split(size)
    for patches, part, result in zip(_patches(x, places, size), parts, results, strict=True):
        if channels <= THIN_CHANNELS:  # this way round is two to three times as fast for nine columns, and the copy is small
            result.copy_(torch.bmm(patches.mT, part).mT)
        else:
            torch.bmm(part.mT, patches, out=result)
    return out.permute(0, 1, 4, 2, 3)


# ---- products over patches, some tasks at a time, with few calls for each: one takes as long as 10^5 products ----


def _block_size(x: Tensor, places: Places, limit: int) -> int | None:
    """Tasks whose patches are made at once; None where the library's convolution, task by task, is faster."""
    if x.device.type != "cpu":
        return len(x)
    n, rows, columns = places.of(x)
    count, channels = n * rows * columns, x.shape[-1]
    one = count * channels * places.kernel**2 * x.element_size()
    if one > limit or (channels <= THIN_CHANNELS and count > THIN_ROWS):
        return None
    return balanced(len(x), BLOCK_BYTES // one)


def _matrix(weight: Tensor) -> Tensor:
    """[T, O, C, k, k] -> [T, O, k * k * C], a view where the memory order is channels-last."""
    return weight.permute(0, 1, 3, 4, 2).flatten(2)


def patch_view(x: Tensor, places: Places) -> Tensor:
    """[T, n, H, W, C] -> [T, n, h, w, k, k * C]: pixels under the kernel at each place, a view of padded `x`."""
    n, rows, columns = places.of(x)
    padded, (kernel, stride, _) = pad(x, places), places
    task, image, row, column, _ = padded.stride()
    return padded.as_strided(
        (len(x), n, rows, columns, kernel, kernel * x.shape[-1]),
        (task, image, row * stride, column * stride, row, 1),
        padded.storage_offset(),
    )


def _patches(x: Tensor, places: Places, size: int) -> Iterator[Tensor]:
    """For `size` tasks of [T, n, H, W, C] after the other [size, n * h * w, k * k * C], in the same memory each time."""
    padded = places.padding(*x.shape[2:4]) != ((0, 0), (0, 0))
    views = (patch_view(part, places) for part in x.split(size)) if padded else patch_view(x, places).split(size)
    shape = (*places.of(x), places.kernel, places.kernel * x.shape[-1])
    memory = x.new_empty(size, *shape)
    rows = memory.flatten(4).flatten(1, 3)
    for view in views:
        if (some := len(view)) < size:
            memory, rows = memory[:some], rows[:some]
        memory.copy_(view)
        yield rows


class Folding:
    """The transpose of `_patches`: `folding(i)` sums `patches` [size, n * h * w, k * k * C] into block i of `images`.

    images: [T, n, H, W, C], taken `size` tasks at a time. result: (h, w).
    """

    def __init__(self, images: Tensor, result: torch.Size, places: Places, size: int) -> None:
        (_, n, height, width, channels), (rows, columns), (kernel, stride, _) = images.shape, result, places
        (top, bottom), (left, right) = places.padding(height, width)
        self.patches = images.new_empty(size, n * rows * columns, kernel**2 * channels)
        folded = self.patches.view(size, n, rows, columns, kernel, kernel, channels)
        out, self._inner, self._images = images, None, images.split(size)
        if top or bottom or left or right:
            out = images.new_empty(size, n, top + height + bottom, left + width + right, channels)
            self._inner = out[:, :, top : top + height, left : left + width]
        tall, wide = (rows - 1) * stride + 1, (columns - 1) * stride + 1
        together = stride if kernel >= stride else 0  # so many pixels of a row, neighbours in memory, go at once

        def lines(i: int) -> Tensor:
            return out[:, :, i : i + tall : stride, : columns * stride].unflatten(-2, (columns, stride))

        moves: list[tuple[Callable[..., Tensor], Tensor, Tensor | None]] = []
        for i in range(together):  # these offsets reach every pixel once, but for the last ones
            moves.append((Tensor.copy_, lines(i), folded[..., i, :stride, :]))
        # by now most of it is in the cache, which writing single columns first would not use
        moves.append((Tensor.zero_, out[:, :, rows * together :], None))
        moves.append((Tensor.zero_, out[:, :, : rows * together, columns * together :], None))
        for i in range(kernel):
            if together and i >= together:
                moves.append((Tensor.add_, lines(i), folded[..., i, :stride, :]))
            for j in range(together, kernel):
                to = out[:, :, i : i + tall : stride, j : j + wide : stride]
                moves.append((Tensor.add_, to, folded[..., i, j, :]))
        self._moves = [(do, to.split(size), source) for do, to, source in moves if to.numel()]

    def __call__(self, number: int) -> None:
        some = len(self._images[number])
        for do, to, source in self._moves:
            block = to[number] if self._inner is None else to[0][:some]
            if source is None:
                do(block)
            else:
                do(block, source if some == len(source) else source[:some])
        if self._inner is not None:
            self._images[number].copy_(self._inner[:some])
