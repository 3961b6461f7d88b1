"""A batch norm after a convolution of few input channels, folded into the convolution's weights.

A convolution gives w.p at every place, with the patch p of k k C numbers under the kernel. Its mean over all places is w.m, and
its variance w'Sw, with the mean m and the covariance S of the patches. Where a patch is small (9 numbers in Omniglot's first
layer) both are cheap, and do not depend on what is learned. So the norm becomes a factor on the weights and a shift, and the
largest maps of a network are passed over neither for their statistics nor, on the way back, for the statistics' derivatives.
S. Ioffe, C. Szegedy: Batch Normalization, ICML 2015, section 3, in exact arithmetic.
"""

import torch
from torch import Tensor

SMALL_PATCH = 16  # numbers; the covariance of 27 (three colours) was measured to cost what it spares


def moments(p: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of patches `p` [n, h, w, D + 1], whose last number is one (`unfold`); in float64."""
    rows = p.flatten(0, -2).double()
    products = rows.mT @ rows / rows.shape[0]
    mean = products[-1, :-1]
    return mean, products[:-1, :-1] - mean[:, None] * mean


def fold(p: Tensor, weight: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The weights [O, D + 1] by which patches have mean `shift` [O] and variance one, but for `eps`, over the patches `p`.

    `weight` is a convolution's, [O, C, k, k], and `p` as in `moments`, with D = k k C. All in float64: most of a picture's
    covariance is in its brightness, to which an edge filter is blind.
    """
    mean, covariance = moments(p)
    rows = weight.permute(0, 2, 3, 1).flatten(1).double()
    scaled = rows * torch.rsqrt(((rows @ covariance) * rows).sum(-1) + eps)[:, None]
    return torch.cat((scaled, (shift - scaled @ mean)[:, None]), 1).to(weight.dtype)
