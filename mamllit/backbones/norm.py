"""Batch norm as the MAML authors ran it: always the statistics of the batch at hand, and a learned shift only.

Whose statistics those are decides what a result means. By default a batch is normalised by all of itself, as in the paper: a
query image's prediction then depends on the other query images (transductive). Under `statistics_from(rows)` only the first
rows count, so that with the support in front each query image is predicted by itself (inductive).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
    first (where a pooled map stands for the whole one). Raises `ValueError` where `statistics_from` asks for more
    examples than n.
    """

    def __init__(self, channels: int, eps: float = 1e-3, scale: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.ones(channels)) if scale else None

    def forward(self, x: Tensor, of: Tensor | None = None) -> Tensor:
        rows = x.shape[0] if _rows is None else _rows
        if rows > x.shape[0]:
            raise ValueError(
                f"statistics_from({rows}) asks for the statistics of {rows} examples, but the batch has {x.shape[0]}; "
                "put the examples that count in front"
            )
        others = tuple(range(x.dim() - 1))
        counted = x if rows == x.shape[0] else x[:rows]
        mean = counted.mean(others, keepdim=True)
        centred = counted - mean
        variance = centred.square().mean(others, keepdim=True)  # faster than torch.var_mean on a CPU
        whole = centred if of is None and counted is x else (x if of is None else of) - mean
        normed = whole * torch.rsqrt(variance + self.eps)
        if self.gamma is not None:
            normed = normed * self.gamma
        return normed + self.beta
