"""The arithmetic of `mamllit.kernels.norm_pool.pooled` on a CPU: some images at a time, whose numbers stay in the cache.

The maps before the pooling are the largest of a network. Formulas as in `mamllit.kernels.norm.kernels`, with p the pooled
map, where z > 0 gives phat = z - shift. Each function passes over the large maps twice: for sums, and for what is made of them.
All maps are contiguous, [T, n, H, W, C] and [T, n, h, w, C] pooled; `index` [T, n, h, w, C] is H W-flat; one number per channel
is [T, 1, 1, 1, C], `shift` also [C].
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.kernels.norm.kernels import masked, row_count, sum_rows

BYTES = 2**20  # of the images that a thread works on at once, one image at least


def forward(x: Tensor, shift: Tensor, eps: float) -> list[Tensor]:
    """z = relu(max of 2x2 of the normalised x, plus shift), mean, r, index."""
    (tasks, n, height, width, channels), rows = x.shape, row_count(x)
    z = x.new_empty(tasks, n, height // 2, width // 2, channels)
    index = torch.empty(z.shape, dtype=torch.long)
    mean, squares = (x.new_zeros(tasks, 1, 1, 1, channels) for _ in range(2))
    for task, part in _parts(x):
        mean[task] += sum_rows(x[task, part])
    mean /= rows
    for task, part in _parts(x):
        image = x[task, part]
        squares[task] += sum_rows((image - mean[task]).square_())
        pooled, where = F.max_pool2d(image.permute(0, 3, 1, 2), 2, return_indices=True)
        z[task, part], index[task, part] = pooled.permute(0, 2, 3, 1), where.permute(0, 2, 3, 1)
    r = torch.rsqrt(squares / rows + eps)
    for task in range(tasks):
        own = shift if shift.dim() == 1 else shift[task]
        torch.addcmul(own - mean[task] * r[task], z[task], r[task], out=z[task]).relu_()
    return [z, mean, r, index]


def first(g: Tensor, x: Tensor, z: Tensor, shift: Tensor, mean: Tensor, r: Tensor, index: Tensor) -> list[Tensor]:
    """For g like z, the gradient to x, the sum of g, and the sum of g phat / N."""
    g, n = masked(g, z), row_count(x)
    total, b = sum_rows(g), sum_rows(g * (z - shift)) / n
    to_x = torch.empty_like(x)
    constant, slope, to_p = r * (r * mean * b - total / n), -r.square() * b, g * r
    for task, part in _parts(x):
        image = to_x[task, part]
        torch.addcmul(constant[task], x[task, part], slope[task], out=image)
        _flat(image).scatter_add_(1, _flat(index[task, part]), _flat(to_p[task, part]))
    return [to_x, total, b]


def second(
    u: Tensor, v: Tensor,
    g: Tensor, x: Tensor, z: Tensor, shift: Tensor, mean: Tensor, r: Tensor, index: Tensor, total: Tensor, b: Tensor,
) -> list[Tensor]:  # fmt: skip
    """The gradients of <u, to x> + <v, sum of g> with respect to g and x."""
    g, n, r2 = masked(g, z), row_count(x), r.square()
    u1, u2, up = torch.zeros_like(mean), torch.zeros_like(mean), torch.empty_like(z)
    for task, part in _parts(x):
        one = u[task, part]
        u1[task] += sum_rows(one)
        u2[task] += sum_rows((x[task, part] - mean[task]).mul_(one))
        torch.gather(_flat(one), 1, _flat(index[task, part]), out=_flat(up[task, part]))
    u1, u2, a = u1 / n, u2 * r / n, total / n
    slope = r2 * (2 * u2 * b - sum_rows(up * g) / n + u1 * a + u2 * b)
    to_g = masked(torch.addcmul(torch.addcmul(v - r * u1, up, r), z - shift, -r * u2), z)
    to_p, to_x = g * (-r2 * u2), torch.empty_like(x)
    by_x, by_u, constant = slope * r, -r2 * b, r2 * (u1 * b + a * u2) - slope * r * mean
    for task, part in _parts(x):
        image = to_x[task, part]
        torch.addcmul(constant[task], x[task, part], by_x[task], out=image).addcmul_(u[task, part], by_u[task])
        _flat(image).scatter_add_(1, _flat(index[task, part]), _flat(to_p[task, part]))
    return [to_g, to_x]


def _parts(x: Tensor) -> Iterator[tuple[int, slice]]:
    """Task by task, some images after the other, as many for each thread."""
    size = max(BYTES // (x[0, 0].numel() * x.element_size()), 1) * torch.get_num_threads()
    for task in range(len(x)):
        for start in range(0, x.shape[1], size):
            yield task, slice(start, start + size)


def _flat(x: Tensor) -> Tensor:
    """[n, H, W, C] -> [n, H W, C]."""
    return x.flatten(1, 2)
