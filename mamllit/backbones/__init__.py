"""Plain networks, as the papers define them. Nothing here knows what an episode is."""

from mamllit.backbones.conv4 import Conv4, SameConv2d
from mamllit.backbones.conv_pairs import ConvPairs
from mamllit.backbones.heads import CosineHead
from mamllit.backbones.hog import Hog
from mamllit.backbones.koch import KochNet
from mamllit.backbones.mlp import MLP
from mamllit.backbones.norm import BatchStatNorm
from mamllit.backbones.resnet12 import ResNet12
from mamllit.backbones.statistician import StatisticianDecoder, StatisticianEncoder
from mamllit.backbones.timm_net import Timm

__all__ = [
    "MLP",
    "BatchStatNorm",
    "Conv4",
    "ConvPairs",
    "CosineHead",
    "Hog",
    "KochNet",
    "ResNet12",
    "SameConv2d",
    "StatisticianDecoder",
    "StatisticianEncoder",
    "Timm",
]
