"""Layers of `Conv4(implementation="fast")`, made of the operators in `mamllit.kernels`; the plain ones stand in `conv4.py`.

The operators keep images channels-last in memory. Here that is a view, so that shapes are PyTorch's everywhere: [n, C, H, W].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones.norm import BatchStatNorm, wide
from mamllit.kernels.conv.convolution import conv
from mamllit.kernels.norm.normalise import normalise
from mamllit.kernels.norm_pool.pooled import pooled_norm


def convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """SAME convolution without a bias."""
    return conv(x.permute(0, 2, 3, 1), weight, stride).permute(0, 3, 1, 2)


def norm_relu(x: Tensor, norm: nn.Module, bias: Tensor, pool: bool) -> Tensor:
    """relu(norm(x + bias)), where `pool` followed by 2x2 max-pooling.

    The norm takes `bias` [C] away again, so that only its gradient of zero is left of it. Norms of another kind run
    as they are; so do norms that use other statistics than the whole batch's, after the pooling where that gives the same.
    """
    own = norm if type(norm) is BatchStatNorm and not norm.watched else None
    if own is None or not own.by_batch:
        if own is not None and own.gamma is None and pool:
            return _pooled_first(x, own, bias.view(-1, 1, 1))
        z = torch.relu(norm(x + bias.view(-1, 1, 1)))
        return F.max_pool2d(z, 2) if pool else z
    x = (wide(x) if torch.is_autocast_enabled(x.device.type) else x).permute(0, 2, 3, 1)
    shift = own.beta + 0 * bias
    if own.gamma is not None:
        z = normalise(x, torch.zeros_like(shift), own.eps, relu=False)
        z = torch.relu(torch.addcmul(shift, z, own.gamma))
    elif pool and x.device.type == "cpu":
        return pooled_norm(x, shift, own.eps).permute(0, 3, 1, 2)
    else:
        z = normalise(x, shift, own.eps, relu=True)
    z = z.permute(0, 3, 1, 2)
    return F.max_pool2d(z, 2) if pool else z


def _pooled_first(x: Tensor, norm: BatchStatNorm, bias: Tensor) -> Tensor:
    """`norm_relu` with the first rows' or given statistics: without gamma the largest pixel stays the largest, so pooling
    comes first and leaves a quarter of the numbers to normalise."""
    x = wide(x) if torch.is_autocast_enabled(x.device.type) else x
    mean, variance = norm.moments(x)  # of x without its bias, but where they are given
    pooled = F.max_pool2d(x, 2) + bias
    return torch.relu(norm.placed(pooled, mean if norm.statistics is not None else mean + bias, variance))
