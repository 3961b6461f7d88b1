"""The four-block convolutional nets of the MAML paper, after Vinyals et al. and Ravi & Larochelle."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones import fast
from mamllit.backbones.dropout import check_dropout, dropped, key_of_images
from mamllit.backbones.norm import BatchStatNorm
from mamllit.backbones.sizes import DATA, Size, number

Implementation = Literal["plain", "fast"]


def check_implementation(implementation: str) -> None:
    if implementation not in ("plain", "fast"):
        raise ValueError(f"implementation is {implementation!r}; it must be 'plain' or 'fast'")


class SameConv2d(nn.Module):
    """Convolution with TensorFlow's SAME padding.

    Args:
        in_channels, out_channels, kernel: sizes; the kernel is square.
        stride: of both dimensions.
        implementation: as in `Conv4`.
        add_bias: False leaves the bias to a norm that follows and would take it away again.

    Shape: [n, in_channels, H, W] -> [n, out_channels, ceil(H / stride), ceil(W / stride)].

    >>> import torch
    >>> from mamllit.backbones import SameConv2d
    >>> SameConv2d(3, 16)(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 16, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        implementation: Implementation = "plain",
        add_bias: bool = True,
    ) -> None:
        super().__init__()
        check_implementation(implementation)
        self.kernel, self.stride, self.implementation, self.add_bias = kernel, stride, implementation, add_bias
        weight = torch.empty(out_channels, in_channels, kernel, kernel)
        nn.init.xavier_uniform_(weight)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.add_bias else None
        if self.implementation == "fast":
            x = fast.convolution(x, self.weight, self.stride)
            return x if bias is None else x + bias.view(-1, 1, 1)
        return F.conv2d(self.pad(x), self.weight, bias, self.stride)

    def pad(self, x: Tensor) -> Tensor:
        """`x` with the border of zeros that SAME asks for; where it is odd, the last row or column is the wider one."""
        height, width = (max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[-2:])
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


class Conv4(nn.Module):
    """Four times [3x3 convolution, batch statistics norm, ReLU, down-sampling], then a linear head.

    Finn et al. 2017, section 5.2 and the authors' code. Omniglot: 64 filters, stride 2, the mean over the last 2x2 map, head
    initialised with N(0, 1). mini-ImageNet: 32 filters, 2x2 max-pooling, 5x5 map flattened, head Xavier uniform. Convolutions
    are Xavier uniform and all biases zero in both.

    Args:
        in_channels: 1 (Omniglot) or 3; "data": the command line takes it from the DataModule, and so below.
        filters: channels of every block.
        out_features: number of classes; None leaves the head off, and the features come out.
        image_size: H = W of the images.
        downsample: "stride" (2, in the convolution) or "max_pool" (2x2, rounding down).
        norm_scale: also learn the norm's gamma (not in the paper's code).
        norm_eps: added to the norm's variance.
        implementation: "plain" is PyTorch's own layers. "fast" computes the same with the operators of `mamllit.kernels`, made
            for weights that differ per task and for derivatives of derivatives. Norm, ReLU and pooling are then one operator,
            and a hook on a norm is not called.
        dropout: share of each block's output that is set to 0 in training, see `mamllit.backbones.dropout`.
        conv_algorithm: what older configurations say: "per_task" for "fast", "conv2d" for "plain".

    Shape: [n, in_channels, H, W] -> [n, out_features].

    >>> net = Conv4(in_channels=1, filters=64, out_features=5, image_size=28, downsample="stride")
    >>> net(torch.rand(25, 1, 28, 28)).shape
    torch.Size([25, 5])
    """

    def __init__(
        self,
        in_channels: Size = DATA,
        filters: int = 32,
        out_features: Size | None = DATA,
        image_size: Size = DATA,
        downsample: Literal["stride", "max_pool"] = "max_pool",
        norm_scale: bool = False,
        norm_eps: float = 1e-3,
        implementation: Implementation = "plain",
        conv_algorithm: Literal["per_task", "conv2d"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if conv_algorithm is not None:
            implementation = "fast" if conv_algorithm == "per_task" else "plain"
        if downsample not in ("stride", "max_pool"):
            raise ValueError(f"downsample is {downsample!r}; it must be 'stride' or 'max_pool'")
        check_implementation(implementation)
        check_dropout(dropout)
        in_channels, image_size = number("in_channels", in_channels), number("image_size", image_size)
        out_features = None if out_features is None else number("out_features", out_features)
        self.in_channels, self.image_size, self.out_features, self.dropout = in_channels, image_size, out_features, dropout
        self.downsample, self.pooled, self.implementation = downsample, downsample == "max_pool", implementation
        channels = [in_channels, filters, filters, filters, filters]
        self.convs = nn.ModuleList(
            SameConv2d(a, b, stride=1 if self.pooled else 2, implementation=implementation, add_bias=implementation == "plain")
            for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        self.norms = nn.ModuleList(BatchStatNorm(filters, norm_eps, norm_scale) for _ in self.convs)
        side = image_size // 16 if self.pooled else -(-image_size // 16)  # halved four times
        if side < 1:
            raise ValueError(f"image_size is {image_size}; four 2x2 poolings need at least 16")
        self.feature_size = features = filters * side**2 if self.pooled else filters
        self.head = nn.Linear(features, out_features) if out_features is not None else None
        if self.head is not None:
            nn.init.zeros_(self.head.bias)
            if self.pooled:
                nn.init.xavier_uniform_(self.head.weight)
            else:
                nn.init.normal_(self.head.weight, std=1.0)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, [n, features]."""
        key = key_of_images(x) if self.dropout and self.training else None
        for block, (convolve, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if self.implementation == "fast":
                x = fast.norm_relu(convolve(x), norm, convolve.bias, self.pooled)  # type: ignore[arg-type]
            else:
                x = F.relu(norm(convolve(x)))
                x = F.max_pool2d(x, 2) if self.pooled else x
            x = x if key is None else dropped(x, self.dropout, key, block)
        return x.permute(0, 2, 3, 1).flatten(1) if self.pooled else x.mean((2, 3))  # in the order of the authors' code

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return x if self.head is None else self.head(x)
