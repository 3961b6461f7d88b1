"""Batch norm as the MAML authors ran it: always the statistics of the batch at hand, and a learned shift only.
For other statistics see `mamllit.backbones.first_rows` and `mamllit.backbones.population`."""

import torch
from torch import Tensor, nn

from mamllit.backbones.first_rows import first_rows


class BatchStatNorm(nn.Module):
    """Normalise each channel with the batch's own statistics, over all examples and positions, then add `beta`.

    tf.contrib.layers.batch_norm, is_training=True, scale=False (cbfinn/maml): no gamma, biased variance, no running statistics.

    Args:
        channels: size of dimension 1.
        eps: added to the variance.
        scale: also learn a factor gamma per channel (the norm of most other papers).

    Shape: [n, channels, ...] -> the same. Raises `ValueError` where `statistics_rows` is more than n.

    >>> import torch
    >>> from mamllit.backbones import BatchStatNorm
    >>> BatchStatNorm(3)(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 3, 8, 8])
    """

    statistics_rows: int | None = None  # take the statistics from the first so many examples; see `first_rows`
    statistics: tuple[Tensor, Tensor] | None = None  # mean and variance [channels] to use; see `population`
    watched = False  # a hook wants to see each call: no fast block steps around the norm

    def __init__(self, channels: int, eps: float = 1e-3, scale: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.ones(channels)) if scale else None

    @property
    def by_batch(self) -> bool:
        """Whether a batch is normalised by all of itself."""
        return self.statistics_rows is None and self.statistics is None

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x) if torch.is_autocast_enabled(x.device.type) else x
        return self.placed(x, *self.moments(x))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance that normalise `x` [n, channels, ...], each [1, channels, 1, ...]."""
        if self.statistics is not None:
            mean, variance = (value.to(x).view([1, -1] + [1] * (x.dim() - 2)) for value in self.statistics)
            return mean, variance
        counted = x if self.statistics_rows is None else first_rows(x, self.statistics_rows)
        others = [0, *range(2, x.dim())]
        mean = counted.mean(others, keepdim=True)
        return mean, (counted - mean).square().mean(others, keepdim=True)  # var() is slow where channels come last in memory

    def placed(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """`x`, or what was pooled of it, normalised by `moments`, scaled and shifted."""
        z = (x - mean) * torch.rsqrt(variance + self.eps)
        return (z if self.gamma is None else z * self.gamma.view(mean.shape)) + self.beta.view(mean.shape)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: the variance of numbers with 8 bits is noise, and an inner loop differentiates it twice."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
