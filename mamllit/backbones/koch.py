"""The convolutional Siamese network of Koch et al. 2015: four convolutions without padding, and a layer of sigmoids."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones.sizes import DATA, Size, number


class KochNet(nn.Module):
    """Three times [convolution, ReLU, 2x2 max-pooling], a fourth convolution with ReLU, then D sigmoids.

    G. Koch, R. Zemel, R. Salakhutdinov 2015, section 3.1 and figure 4. At 105 x 105 the maps have sides 96, 48, 42, 21, 18, 9
    and 6, and with the 4,097 weights of `SiameseNetworks` there are 38,951,745 parameters.

    Args:
        in_channels, image_size: C and H = W of the images; "data": the command line takes them from the DataModule.
        channels, kernels: of the four convolutions.
        features: D.
        initialisation: "koch": convolutions from N(0, .01), the last layer from N(0, .2), biases from N(.5, .01), numbers after
            the comma standard deviations, as in the paper. Nine in ten sigmoids then begin near 0 or 1, where their slope is
            next to nothing. "plain": PyTorch's own, as re-implementations have it.

    Shape: [n, C, H, W] -> [n, D], each in (0, 1).

    Raises:
        ValueError: for images that are too small, other than four convolutions, or an unknown initialisation.

    >>> import torch
    >>> from mamllit.backbones import KochNet
    >>> KochNet(1, 35, channels=[8, 8, 8, 16], kernels=[4, 3, 2, 2], features=32)(torch.rand(3, 1, 35, 35)).shape
    torch.Size([3, 32])
    """

    out_features = None  # features, no classes

    def __init__(
        self,
        in_channels: Size = DATA,
        image_size: Size = DATA,
        channels: Sequence[int] = (64, 128, 128, 256),
        kernels: Sequence[int] = (10, 7, 4, 4),
        features: int = 4096,
        initialisation: Literal["koch", "plain"] = "koch",
    ) -> None:
        super().__init__()
        if len(channels) != 4 or len(kernels) != 4:
            raise ValueError(
                f"channels is {list(channels)} and kernels {list(kernels)}; there are four convolutions: give four of each"
            )
        if initialisation not in ("koch", "plain"):
            raise ValueError(f"initialisation is {initialisation!r}; it must be 'koch' or 'plain'")
        self.in_channels, self.image_size = number("in_channels", in_channels), number("image_size", image_size)
        self.feature_size = features
        side, least = self.image_size, kernels[3]
        for kernel in reversed(kernels[:3]):
            least = 2 * least + kernel - 1
        if side < least:
            raise ValueError(f"image_size is {side}; kernels {list(kernels)}, with pooling in between, need at least {least}")
        for kernel in kernels[:3]:
            side = (side - kernel + 1) // 2
        side -= kernels[3] - 1
        widths = [self.in_channels, *channels]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k) for a, b, k in zip(widths[:-1], widths[1:], kernels, strict=True))
        self.project = nn.Linear(channels[3] * side**2, features)
        if initialisation == "koch":
            for layer in (*self.convs, self.project):
                nn.init.normal_(layer.weight, std=0.2 if layer is self.project else 0.01)
                nn.init.normal_(layer.bias, 0.5, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        for depth, convolve in enumerate(self.convs):
            x = F.relu(convolve(x))
            if depth < 3:
                x = F.max_pool2d(x, 2)
        return self.project(x.flatten(1)).sigmoid()
