"""Batch norm as the MAML authors ran it: always the statistics of the batch at hand, and a learned shift only.

Whose statistics those are decides what a result means. By default a batch is normalised by all of itself, as in the paper: a
query image's prediction then depends on the other query images (transductive). Under `statistics_from(rows)` only the first
rows count, so that with the support in front each query image is predicted by itself (inductive).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.kernels.norm.normalise import normalise

_rows: int | None = None  # a plain global: torch.compile guards on it, which it does not do for a ContextVar


@contextmanager
def statistics_from(rows: int | None) -> Iterator[None]:
    """Within, every `BatchStatNorm` takes its statistics from the first `rows` examples of a batch; None means from all.

    Nests; an inner one wins until its end. Works under `torch.func.vmap` and `grad`, where an example is one of the function
    that is transformed. Holds for the whole process, threads included.

    Raises:
        ValueError: for fewer than one row.
    """
    global _rows
    if rows is not None and rows < 1:
        raise ValueError(f"rows is {rows}; statistics need at least one example, so it must be >= 1 (or None for all)")
    before, _rows = _rows, rows
    try:
        yield
    finally:
        _rows = before


def counted_rows(x: Tensor) -> Tensor:
    """Those examples of `x` [n, ...] that statistics are taken from, see `statistics_from`; `x` itself where that is all.

    Raises `ValueError` where `statistics_from` asks for more examples than n.
    """
    rows = x.shape[0] if _rows is None else _rows
    if rows > x.shape[0]:
        raise ValueError(
            f"statistics_from({rows}) asks for the statistics of {rows} examples, but the batch has {x.shape[0]}; "
            "put the examples that count in front"
        )
    return x if rows == x.shape[0] else x[:rows]


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: the variance of numbers with 8 bits is noise, and an inner loop differentiates it twice."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class BatchStatNorm(nn.Module):
    """Normalise the last dimension's channels over all others with the batch's own statistics, then add `beta`.

    tf.contrib.layers.batch_norm with is_training=True and scale=False (cbfinn/maml): eps 1e-3, biased variance, no gamma, no
    running statistics. What is in the batch therefore matters: a query batch that is normalised by itself is transductive, and
    `statistics_from` is the way out.

    Args:
        channels: size of the last dimension.
        eps: added to the variance.
        scale: also learn a factor gamma per channel (the norm of most other papers).

    Shape: [n, ..., channels] -> the same; with `of` [n, ..., channels], that tensor is normalised by the statistics of the
    first (where a pooled map stands for the whole one). `relu`: rectify the result in the same pass. `border`: put rows of
    zeros before and after, in both dimensions of images. `offset` [channels]: a constant that `x` lacks (a convolution's bias),
    which the norm takes away anyway; it only enters autograd's graph, with a gradient of zero. Raises `ValueError` where
    `statistics_from` asks for more examples than n.
    """

    def __init__(self, channels: int, eps: float = 1e-3, scale: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.ones(channels)) if scale else None

    def forward(
        self,
        x: Tensor,
        of: Tensor | None = None,
        relu: bool = False,
        border: tuple[int, int] = (0, 0),
        offset: Tensor | None = None,
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x, of = wide(x), None if of is None else wide(of)
        counted = counted_rows(x)
        whole = x if of is None else of
        alone = of is None and counted is x
        shift = self.beta if self.gamma is None else torch.zeros_like(self.beta)
        if offset is not None:
            shift = shift + 0 * offset
        fused = self.gamma is None
        z = normalise(
            _as_images(counted),
            None if alone else _as_images(whole),
            shift,
            self.eps,
            relu and fused,
            border if fused else (0, 0),
        )
        if self.gamma is not None:
            z = torch.addcmul(self.beta, z, self.gamma)
            before, after = border
            z = F.pad(torch.relu(z) if relu else z, (0, 0, before, after, before, after))
        return z if whole.dim() == 4 else z.view(whole.shape)


def _as_images(x: Tensor) -> Tensor:
    """[n, ..., C] -> [n, h, w, C]."""
    return x if x.dim() == 4 else x.reshape(len(x), -1, 1, x.shape[-1])
