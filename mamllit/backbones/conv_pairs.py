"""The embedding network of Kaiser et al. 2017: two pairs of convolutions, each pair before a pooling, without a norm."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones.sizes import DATA, Size, number


class ConvPairs(nn.Module):
    """Twice [two 3x3 convolutions with ReLU, 2x2 max-pooling], then a linear layer to D features.

    Weights are drawn from N(0, .1), cut at two standard deviations, biases are zero, as in the authors' code.

    Args:
        in_channels, image_size: C and H = W of the images; "data": the command line takes them from the DataModule.
        filters: of the first pair; the second has twice as many.
        features: D; the authors' code has 128, and 256 where the paper's numbers are to be reached.

    Shape: [n, C, H, W] -> [n, D].

    >>> import torch
    >>> from mamllit.backbones import ConvPairs
    >>> ConvPairs(1, 28, filters=8, features=16)(torch.rand(3, 1, 28, 28)).shape
    torch.Size([3, 16])
    """

    out_features = None  # features, no classes

    def __init__(self, in_channels: Size = DATA, image_size: Size = DATA, filters: int = 64, features: int = 256) -> None:
        super().__init__()
        self.in_channels, self.image_size = number("in_channels", in_channels), number("image_size", image_size)
        self.feature_size = features
        sizes = [self.in_channels, filters, filters, 2 * filters, 2 * filters]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        side = math.ceil(self.image_size / 4)  # what a pooling leaves over counts
        self.project = nn.Linear(2 * filters * side**2, features)
        for layer in (*self.convs, self.project):
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for depth, convolve in enumerate(self.convs):
            x = F.relu(convolve(x))
            if depth % 2:
                x = F.max_pool2d(x, 2, ceil_mode=True)
        return self.project(x.flatten(1))
