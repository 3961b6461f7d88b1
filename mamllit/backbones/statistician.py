"""The convolutional networks of the neural statistician (Edwards & Storkey 2017) for 28 x 28 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones.norm import BatchStatNorm


class StatisticianEncoder(nn.Module):
    """Three blocks of [3x3 convolution, 3x3 convolution, 3x3 convolution with stride 2], each with norm and ELU.

    Args:
        filters: of the blocks.

    Shape: [n, 1, 28, 28] -> [n, 16 * filters[-1]].

    >>> import torch
    >>> StatisticianEncoder((4, 4, 8))(torch.rand(3, 1, 28, 28)).shape
    torch.Size([3, 128])
    """

    in_channels, image_size, out_features = 1, 28, None

    def __init__(self, filters: tuple[int, int, int] = (64, 128, 256)) -> None:
        super().__init__()
        sizes = [self.in_channels, *(size for size in filters for _ in range(3))]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if depth % 3 == 2 else 1, padding=1)
            for depth, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.norms = nn.ModuleList(BatchStatNorm(size, scale=True) for size in sizes[1:])
        self.feature_size = 16 * filters[-1]
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        for convolve, norm in zip(self.convs, self.norms, strict=True):
            x = F.elu(norm(convolve(x)))
        return x.flatten(1)


class StatisticianDecoder(nn.Module):
    """A linear layer to a map of 4 x 4, then three blocks of [3x3 convolution, 3x3 convolution, 2x2 transposed convolution
    with stride 2], each with norm and ELU, then a 1x1 convolution to the logits of the pixels.

    Args:
        inputs: size of the latent variables together.
        filters: of the blocks. The second convolution of the last block has no padding, which makes 28 of 32.

    Shape: [n, inputs] -> [n, 1, 28, 28].

    >>> import torch
    >>> StatisticianDecoder(5, (8, 4, 4))(torch.rand(3, 5)).shape
    torch.Size([3, 1, 28, 28])
    """

    def __init__(self, inputs: int = 528, filters: tuple[int, int, int] = (256, 128, 64)) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 16 * filters[0])
        layers: list[nn.Module] = [nn.Unflatten(1, (filters[0], 4, 4))]
        before = filters[0]
        for block, size in enumerate(filters):
            steps = [nn.Conv2d(before, size, 3, padding=1), nn.Conv2d(size, size, 3, padding=int(block < 2))]
            for layer in (*steps, nn.ConvTranspose2d(size, size, 2, stride=2)):
                layers += [layer, BatchStatNorm(size, scale=True), nn.ELU()]
            before = size
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 1))
        self.apply(xavier)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(self.linear(latent))


def xavier(module: nn.Module) -> None:
    """Begin with weights from a normal distribution after Glorot, with the gain of a ReLU, and biases of zero."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_normal_(module.weight, nn.init.calculate_gain("relu"))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
