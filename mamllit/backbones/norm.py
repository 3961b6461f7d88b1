"""Batch norm as the MAML authors ran it: always the statistics of the batch at hand, and a learned shift only."""

import torch
from torch import Tensor, nn


class BatchStatNorm(nn.Module):
    """Normalise the last dimension's channels over all others with the batch's own statistics, then add `beta`.

    tf.contrib.layers.batch_norm with is_training=True and scale=False (cbfinn/maml): eps 1e-3, biased variance, no gamma, no
    running statistics. What is in the batch therefore matters: a query batch that is normalised by itself is transductive.

    Args:
        channels: size of the last dimension.
        eps: added to the variance.
        scale: also learn a factor gamma per channel (the norm of most other papers).

    Shape: [..., channels] -> the same.
    """

    def __init__(self, channels: int, eps: float = 1e-3, scale: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.ones(channels)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=tuple(range(x.dim() - 1)), correction=0, keepdim=True)
        normed = (x - mean) * torch.rsqrt(variance + self.eps)
        if self.gamma is not None:
            normed = normed * self.gamma
        return normed + self.beta
