"""PyTorch's batch norm as learn2learn's examples run it, on the statistics of the batch at hand.

learn2learn's networks keep running statistics that no example of it ever uses; an inner loop would overwrite them from every
task in turn. They are left out here, and `mamllit.backbones.first_rows` works with them, so that a test can be inductive.
"""

import torch
from torch import Tensor, nn

from mamllit.backbones.first_rows import first_rows
from mamllit.backbones.norm import wide

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class BatchStatistics(nn.Module):
    """Takes the place of a `BatchNorm1d` or `BatchNorm2d`, with the same parameters under the same names.

    Shape: [n, channels, ...] -> the same.
    """

    statistics_rows: int | None = None  # see `mamllit.backbones.first_rows.normalised_by_first`

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.eps, self.num_features = norm.eps, norm.num_features
        self.weight, self.bias = norm.weight, norm.bias  # the very same: a transform of learn2learn may hold them already

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x.movedim(1, -1))
        counted = first_rows(x, self.statistics_rows).flatten(0, -2)
        y = (x - counted.mean(0)) * torch.rsqrt(counted.var(0, unbiased=False) + self.eps)
        if self.weight is not None:
            y = y * self.weight + self.bias
        return y.movedim(-1, 1)


def use_batch_statistics(module: nn.Module) -> None:
    """Replace every batch norm inside `module`, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm):
                setattr(parent, name, BatchStatistics(child))
