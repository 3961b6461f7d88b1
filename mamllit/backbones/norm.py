"""Batch norm as the MAML authors ran it: always the statistics of the batch at hand, and a learned shift only.

Whose statistics those are decides what a result means. By default a batch is normalised by all of itself, as in the paper: the
prediction for a query image then depends on the other query images (transductive). A network `normalised_by_first(rows)` uses
only the statistics of the first rows of a batch: with the support in front, each query image is predicted alone (inductive).
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class BatchStatNorm(nn.Module):
    """Normalise each channel with the batch's own statistics, over all examples and positions, then add `beta`.

    tf.contrib.layers.batch_norm with is_training=True and scale=False (cbfinn/maml): eps 1e-3, biased variance, no gamma, no
    running statistics.

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

    statistics_rows: int | None = None  # take the statistics from the first so many examples; see `normalised_by_first`

    def __init__(self, channels: int, eps: float = 1e-3, scale: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.ones(channels)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x) if torch.is_autocast_enabled(x.device.type) else x
        counted = first_rows(x, self.statistics_rows)
        others = [0, *range(2, x.dim())]
        mean = counted.mean(others, keepdim=True)
        variance = counted.var(others, correction=0, keepdim=True)
        z = (x - mean) * torch.rsqrt(variance + self.eps)
        if self.gamma is not None:
            z = z * self.gamma.view(mean.shape)
        return z + self.beta.view(mean.shape)


def normalised_by_first(module: Module, rows: int) -> Module:
    """A copy of `module` whose batch norms use the statistics of the first `rows` examples of a batch, and normalise all.

    The norms are those modules that have an attribute `statistics_rows`; `module` itself stays as it is. Under
    `torch.func.vmap` an example is one of the function that is vectorised.

    Raises:
        ValueError: for fewer than one row.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; statistics need at least one example, so it must be >= 1")
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "statistics_rows"):
            part.statistics_rows = rows  # type: ignore[assignment]
    return module


def first_rows(x: Tensor, rows: int | None) -> Tensor:
    """The first `rows` examples of `x` [n, ...]; all for None. Raises `ValueError` where there are fewer."""
    if rows is None:
        return x
    if rows > len(x):
        raise ValueError(
            f"statistics_rows is {rows}, but the batch has {len(x)} examples; put the examples whose statistics count in front"
        )
    return x[:rows]


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: the variance of numbers with 8 bits is noise, and an inner loop differentiates it twice."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
