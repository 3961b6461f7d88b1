"""Where a kernel is put on channels-last images [..., n, H, W, C]: sizes and padding."""

from typing import NamedTuple

from torch import Tensor


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


def pad(x: Tensor, places: Places) -> Tensor:
    """`x` with the zeros around it that `places` asks for; contiguous."""
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
