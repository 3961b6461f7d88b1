"""Weights between mamllit's `Conv4` and learn2learn's `OmniglotCNN` and `MiniImagenetCNN` (also called `CNN4`), both ways.

The two are the same networks but for details, all of which are carried over, so that the outputs agree up to rounding:

- A convolution with stride 2 begins at the other edge of the image (TensorFlow pads at the end, learn2learn at the
  beginning). So kernels are turned by 180 degrees, and so must the image be: `HalfTurn` does that.
- The map before the head is flattened channels-last in mamllit, channels-first in learn2learn.
- Batch norm has a factor gamma and eps 1e-5 in learn2learn, where the MAML authors have neither gamma nor that eps.
- learn2learn's running statistics are left behind: compare with its network in `train()`, as its examples use it.
"""

from typing import Any

import learn2learn as l2l
import torch
from torch import Tensor, nn

from mamllit.backbones import Conv4


class HalfTurn(nn.Module):
    """A network that sees its images [n, C, H, W] turned by 180 degrees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.flip(-1, -2))


def from_learn2learn(network: nn.Module) -> nn.Module:
    """The same function of images as a `Conv4`, or for an `OmniglotCNN` as `HalfTurn(Conv4)`; a copy of the weights.

    Raises:
        TypeError: for another kind of network.
        ValueError: for one that `Conv4` cannot be: not four layers, or without max-pooling in a `MiniImagenetCNN`.
    """
    if isinstance(network, HalfTurn):
        return _unturned(from_learn2learn(network.network))
    stride = isinstance(network, l2l.vision.models.OmniglotCNN)
    if not stride and not isinstance(network, l2l.vision.models.MiniImagenetCNN):
        raise TypeError(
            f"the network is a {type(network).__name__}; weights can be converted only from learn2learn's "
            "OmniglotCNN and MiniImagenetCNN (CNN4)"
        )
    theirs: Any = network
    blocks = list(theirs.base if stride else theirs.features)
    if len(blocks) != 4 or (not stride and not isinstance(blocks[0].max_pool, nn.MaxPool2d)):
        raise ValueError(
            f"the {type(network).__name__} has {len(blocks)} layers"
            f"{'' if stride or isinstance(blocks[0].max_pool, nn.MaxPool2d) else ' without max-pooling'}; Conv4 has four, "
            "with max-pooling except in the Omniglot network"
        )
    head = theirs.classifier
    filters, channels = blocks[0].conv.weight.shape[:2]
    side = 1 if stride else round((head.in_features / filters) ** 0.5)
    made = Conv4(
        channels, filters, head.out_features, 28 if stride else 84 if side == 5 else 16 * side,
        "stride" if stride else "max_pool", norm_scale=True, norm_eps=blocks[0].normalize.eps,
    )  # fmt: skip
    ours: Any = made
    with torch.no_grad():
        for block, convolve, norm in zip(blocks, ours.convs, ours.norms, strict=True):
            convolve.weight.copy_(_turned(block.conv.weight) if stride else block.conv.weight)
            convolve.bias.copy_(block.conv.bias)
            norm.gamma.copy_(block.normalize.weight)
            norm.beta.copy_(block.normalize.bias)
        ours.head.weight.copy_(head.weight.unflatten(1, (filters, side, side)).permute(0, 2, 3, 1).flatten(1))
        ours.head.bias.copy_(head.bias)
    return HalfTurn(made) if stride else made


def to_learn2learn(network: nn.Module) -> nn.Module:
    """The same function of images as a `MiniImagenetCNN`, or with strides as `HalfTurn(OmniglotCNN)`; a copy of the weights.

    Raises:
        TypeError: for anything but a `Conv4`, or one in a `HalfTurn`.
        ValueError: for one without a head, or with strides but other than 1 x 28 x 28 images.
    """
    if isinstance(network, HalfTurn):
        return _unturned(to_learn2learn(network.network))
    if not isinstance(network, Conv4):
        raise TypeError(f"the network is a {type(network).__name__}; weights can be converted to learn2learn only from a Conv4")
    ours: Any = network
    stride, head = network.downsample == "stride", network.head
    if head is None:
        raise ValueError("the Conv4 has no head (out_features is None), which learn2learn's networks have; give it one")
    filters = ours.convs[0].weight.shape[0]
    if stride and (network.in_channels, network.image_size) != (1, 28):
        raise ValueError(
            f"the strided Conv4 takes images of {network.in_channels} x {network.image_size} x {network.image_size}; "
            "learn2learn's OmniglotCNN takes 1 x 28 x 28"
        )
    made: Any
    if stride:
        made = l2l.vision.models.OmniglotCNN(head.out_features, filters)
    else:
        made = l2l.vision.models.CNN4(head.out_features, filters, channels=network.in_channels, embedding_size=head.in_features)
    side = 1 if stride else round((head.in_features / filters) ** 0.5)
    blocks = made.base if stride else made.features
    with torch.no_grad():
        for block, convolve, norm in zip(blocks, ours.convs, ours.norms, strict=True):
            block.conv.weight.copy_(_turned(convolve.weight) if stride else convolve.weight)
            block.conv.bias.copy_(convolve.bias)
            block.normalize.weight.copy_(torch.ones_like(norm.beta) if norm.gamma is None else norm.gamma)
            block.normalize.bias.copy_(norm.beta)
            block.normalize.eps = norm.eps
        made.classifier.weight.copy_(head.weight.unflatten(1, (side, side, filters)).permute(0, 3, 1, 2).flatten(1))
        made.classifier.bias.copy_(head.bias)
    return HalfTurn(made) if stride else made


def _turned(weight: Tensor) -> Tensor:
    return weight.flip(-1, -2)


def _unturned(network: nn.Module) -> nn.Module:
    """`HalfTurn` of a network that is one itself: two half turns are none."""
    return network.network if isinstance(network, HalfTurn) else HalfTurn(network)
