"""The four-block convolutional nets of the MAML paper (Omniglot and mini-ImageNet), after Vinyals et al. and Ravi & Larochelle.

Activations are kept channels-last, [n, H, W, C], inside: that is the order in which a convolution whose weights differ
per task becomes one batched matrix product over patches (and the order in which the paper's TensorFlow code flattened).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones.norm import BatchStatNorm, counted_rows
from mamllit.backbones.sizes import DATA, Size, number
from mamllit.kernels.conv.convolution import conv
from mamllit.kernels.conv.places import output_size, same_padding
from mamllit.kernels.conv.unfold import unfold
from mamllit.kernels.norm.moments import SMALL_PATCH, fold
from mamllit.kernels.norm.rectified import rectified
from mamllit.kernels.norm_pool.pooled import pooled_norm

ConvAlgorithm = Literal["per_task", "conv2d"]


class SameConv2d(nn.Module):
    """Convolution with TensorFlow's SAME padding on channels-last images.

    Args:
        in_channels, out_channels: sizes.
        kernel: side of the square kernel.
        stride: of both dimensions.
        algorithm: "per_task" is `mamllit.kernels.conv.convolution.conv`, fast where weights differ per task and under second
            derivatives; "conv2d" is PyTorch's, the reference. The results agree up to rounding.
        add_bias: False leaves the bias to the norm that follows, which would take it away again: a pass less.

    Shape: [n, H, W, in_channels] -> [n, ceil(H / stride), ceil(W / stride), out_channels]; images that are `padded` already
    have their border with them. The weight has PyTorch's layout, [out_channels, in_channels, kernel, kernel].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        algorithm: ConvAlgorithm = "per_task",
        add_bias: bool = True,
    ) -> None:
        super().__init__()
        if algorithm not in ("per_task", "conv2d"):
            raise ValueError(f"algorithm is {algorithm!r}; it must be 'per_task' or 'conv2d'")
        self.kernel, self.stride, self.algorithm, self.add_bias = kernel, stride, algorithm, add_bias
        weight = torch.empty(out_channels, in_channels, kernel, kernel)
        nn.init.xavier_uniform_(weight)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, padded: bool = False) -> Tensor:
        if self.algorithm == "per_task":
            x = conv(x, self.weight, self.stride, same=not padded)
            return x + self.bias if self.add_bias else x
        x = (x if padded else self.pad(x)).permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, self.bias if self.add_bias else None, stride=self.stride).permute(0, 2, 3, 1)

    def pad(self, x: Tensor) -> Tensor:
        """`x` with the border of zeros that SAME asks for, [n, H, W, C] -> [n, H + ..., W + ..., C]."""
        (top, bottom), (left, right) = (same_padding(side, self.kernel, self.stride) for side in x.shape[-3:-1])
        return F.pad(x, (0, 0, left, right, top, bottom))


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
        conv_algorithm: see `SameConv2d`.

    Shape: [n, in_channels, H, W] -> [n, out_features].
    """

    def __init__(
        self,
        in_channels: Size = DATA,
        filters: int = 32,
        out_features: Size | None = DATA,
        image_size: Size = DATA,
        downsample: Literal["stride", "max_pool"] = "max_pool",
        norm_scale: bool = False,
        conv_algorithm: ConvAlgorithm = "per_task",
        norm_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if downsample not in ("stride", "max_pool"):
            raise ValueError(f"downsample is {downsample!r}; it must be 'stride' or 'max_pool'")
        in_channels, image_size = number("in_channels", in_channels), number("image_size", image_size)
        out_features = None if out_features is None else number("out_features", out_features)
        self.in_channels, self.image_size, self.out_features = in_channels, image_size, out_features
        self.downsample = downsample
        channels = [in_channels, filters, filters, filters, filters]
        stride = 2 if downsample == "stride" else 1
        self.convs = nn.ModuleList(
            SameConv2d(a, b, stride=stride, algorithm=conv_algorithm, add_bias=False)
            for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        self.norms = nn.ModuleList(BatchStatNorm(filters, norm_eps, norm_scale) for _ in self.convs)
        side = image_size
        for _ in self.convs:
            side = -(-side // 2) if downsample == "stride" else side // 2
        if side < 1:
            raise ValueError(f"image_size is {image_size}; four 2x2 poolings need at least 16")
        self.feature_size = features = filters if downsample == "stride" else filters * side**2
        self.head = nn.Linear(features, out_features) if out_features is not None else None
        if self.head is not None:
            nn.init.zeros_(self.head.bias)
            if downsample == "stride":
                nn.init.normal_(self.head.weight, std=1.0)
            else:
                nn.init.xavier_uniform_(self.head.weight)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, [n, features]."""
        x = x.permute(0, 2, 3, 1)
        if self.downsample == "max_pool":
            for convolve, norm in zip(self.convs, self.norms, strict=True):
                x = self._pooled(x, convolve, norm)
            return x.flatten(1)
        before, after = same_padding(x.shape[1], 3, 2)
        x = F.pad(x, (0, 0, before, after, before, after))
        for convolve, norm in zip(self.convs, self.norms, strict=True):
            x = self._strided(x, convolve, norm, last=convolve is self.convs[-1])
        return x.mean((1, 2))

    def _pooled(self, x: Tensor, convolve: nn.Module, norm: nn.Module) -> Tensor:
        if folds(x, convolve, norm):
            p, weight = _folded(x, convolve, norm, padded=False)
            return torch.relu(max_pool(p @ weight.mT))
        x = convolve(x)
        if pools(x, norm):
            assert isinstance(norm, BatchStatNorm) and isinstance(convolve.bias, Tensor)
            return pooled_norm(x, norm.beta + 0 * convolve.bias, norm.eps)
        if norm.gamma is None:
            # a norm without gamma and ReLU never fall, so the maximum before them is that after, from fewer pixels
            return norm(x, of=max_pool(x), relu=True, offset=convolve.bias)
        return max_pool(norm(x, relu=True, offset=convolve.bias))

    def _strided(self, x: Tensor, convolve: nn.Module, norm: nn.Module, last: bool) -> Tensor:
        """A block whose convolution has stride 2; the padding that the next one needs is put there by the norm."""
        side = output_size(x.shape[1], 3, 2, False)
        border = (0, 0) if last else same_padding(side, 3, 2)
        if folds(x, convolve, norm):
            return rectified(*_folded(x, convolve, norm, padded=True), border)
        return norm(convolve(x, padded=True), relu=True, border=border, offset=convolve.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return x if self.head is None else self.head(x)


def folds(x: Tensor, convolve: nn.Module, norm: nn.Module) -> bool:
    """Whether `norm` can be folded into the weights of `convolve`, and should be: not where a hook wants the map between."""
    return (
        type(convolve) is SameConv2d
        and type(norm) is BatchStatNorm
        and convolve.algorithm == "per_task"
        and norm.gamma is None
        and x.shape[-1] * convolve.kernel**2 <= SMALL_PATCH
        and x.device.type in ("cpu", "cuda")  # float64
        and not torch.is_autocast_enabled(x.device.type)
        and not (convolve._forward_hooks or convolve._forward_pre_hooks or norm._forward_hooks or norm._forward_pre_hooks)
    )


def pools(x: Tensor, norm: nn.Module) -> bool:
    """Whether `norm`, ReLU and pooling run as one operator: on a CPU, by the statistics of all of `x`, no hook on the norm."""
    return (
        type(norm) is BatchStatNorm
        and norm.gamma is None
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and counted_rows(x) is x
        and not (norm._forward_hooks or norm._forward_pre_hooks)
    )


def _folded(x: Tensor, convolve: nn.Module, norm: nn.Module, padded: bool) -> tuple[Tensor, Tensor]:
    """The patches of `x`, and the weights by which they become the normalised and shifted map."""
    assert isinstance(convolve, SameConv2d) and isinstance(norm, BatchStatNorm)
    p = unfold(x, convolve.kernel, convolve.stride, same=not padded)
    return p, fold(counted_rows(p), convolve.weight, norm.beta + 0 * convolve.bias, norm.eps)


def max_pool(x: Tensor) -> Tensor:
    """2x2 max-pooling of channels-last images [n, H, W, C], rounding down (TensorFlow's VALID)."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
