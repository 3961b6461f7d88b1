"""A linear head whose rows and inputs have unit length: W.-Y. Chen et al., A Closer Look at Few-shot Classification, 2019."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineHead(nn.Module):
    """The cosine with a learned vector per class, times a learned scale: the head of "Baseline++".

    Args:
        in_features: D.
        out_features: number of classes.
        scale: what the learned scale begins with; a cosine alone could not tell many classes apart.

    Shape: [n, D] -> [n, out_features].

    >>> import torch
    >>> from mamllit.backbones import CosineHead
    >>> CosineHead(16, 5)(torch.rand(10, 16)).shape
    torch.Size([10, 5])
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))
