"""ResNet-12, the larger network of few-shot papers: four residual blocks of three convolutions, 640 features.

B. Oreshkin, P. Rodriguez Lopez, A. Lacoste: TADAM, NeurIPS 2018, in the wider form of K. Lee et al. (MetaOptNet, CVPR 2019):
64, 160, 320, 640 channels, leaky ReLU of slope 0.1, 2x2 max-pooling after each block, the mean over the last map. 12.4
million parameters.

Departures: no DropBlock; a norm by batch statistics, so that it can be meta-learned (see `BatchStatNorm`).

    >>> import torch
    >>> from mamllit.backbones import ResNet12
    >>> ResNet12(in_channels=3, out_features=None, image_size=84, channels=[8, 8, 8, 16])(torch.zeros(2, 3, 84, 84)).shape
    torch.Size([2, 16])
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones.norm import BatchStatNorm

SLOPE = 0.1


class Block(nn.Module):
    """Three convolutions with norms, beside a 1x1 convolution; pooled: [n, C, H, W] -> [n, channels, H // 2, W // 2]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        widths = [in_channels, channels, channels, channels]
        pairs = [*zip(widths, widths[1:], [3] * 3, strict=False), (in_channels, channels, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False) for a, b, kernel in pairs)
        self.norms = nn.ModuleList(BatchStatNorm(channels, eps=1e-5, scale=True) for _ in pairs)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        def layer(i: int, x: Tensor) -> Tensor:
            y: Tensor = self.norms[i](self.convs[i](x))
            return y

        y = F.leaky_relu(layer(0, x), SLOPE)
        y = F.leaky_relu(layer(1, y), SLOPE)
        return F.max_pool2d(F.leaky_relu(layer(2, y) + layer(3, x), SLOPE), 2)


class ResNet12(nn.Module):
    """See the module.

    Args:
        in_channels: 1 or 3.
        out_features: number of classes; None leaves the head off, and the features come out.
        image_size: H = W of the images, at least 16.
        channels: of the four blocks.

    Shape: [n, in_channels, H, W] -> [n, out_features].

    Raises:
        ValueError: for images that are too small.
    """

    def __init__(
        self, in_channels: int, out_features: int | None, image_size: int, channels: Sequence[int] = (64, 160, 320, 640)
    ) -> None:
        super().__init__()
        if image_size < 2 ** len(channels):
            raise ValueError(f"image_size is {image_size}; {len(channels)} poolings need at least {2 ** len(channels)}")
        self.in_channels, self.image_size, self.out_features = in_channels, image_size, out_features
        widths = [in_channels, *channels]
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.head = nn.Linear(widths[-1], out_features) if out_features is not None else None

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, [n, features]."""
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return x if self.head is None else self.head(x)
