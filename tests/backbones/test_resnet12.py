"""ResNet-12: its size, its shapes, and that it can be trained."""

import pytest
import torch
import torch.nn.functional as F

from mamllit.backbones import ResNet12
from mamllit.backbones.resnet12 import Block


def test_it_has_the_fields_12_4_million_parameters() -> None:
    with torch.device("meta"):
        net = ResNet12(in_channels=3, out_features=None, image_size=84)
        with_head = ResNet12(in_channels=3, out_features=64, image_size=84)
    widths = [3, 64, 160, 320, 640]
    convs = sum(9 * a * b + 2 * 9 * b * b + a * b for a, b in zip(widths, widths[1:], strict=False))
    norms = sum(4 * 2 * b for b in widths[1:])
    assert sum(value.numel() for value in net.parameters()) == convs + norms == 12_424_320
    assert sum(value.numel() for value in with_head.parameters()) == 12_424_320 + 641 * 64


def test_shapes_and_gradient() -> None:
    net = ResNet12(in_channels=1, out_features=5, image_size=16, channels=[4, 4, 6, 8])
    x = torch.rand(3, 1, 16, 16)
    assert net.features(x).shape == (3, 8)
    net(x).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in net.parameters())
    assert all(value.grad.abs().max() > 0 for name, value in net.named_parameters() if "norms" not in name)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 15; 4 poolings need at least 16"):
        ResNet12(in_channels=1, out_features=5, image_size=15)


def test_a_block_is_three_layers_beside_one() -> None:
    block = Block(2, 3).double()
    for norm in block.norms:
        torch.nn.init.normal_(norm.gamma)
        torch.nn.init.normal_(norm.beta)
    x = torch.randn(4, 2, 8, 6, dtype=torch.float64)

    def layer(i: int, x: torch.Tensor) -> torch.Tensor:
        norm = block.norms[i]
        y = F.conv2d(x, block.convs[i].weight, padding=1 if i < 3 else 0)
        return F.batch_norm(y, None, None, norm.gamma, norm.beta, training=True, eps=1e-5)

    y = F.leaky_relu(layer(0, x), 0.1)
    y = F.leaky_relu(layer(2, F.leaky_relu(layer(1, y), 0.1)) + layer(3, x), 0.1)
    torch.testing.assert_close(block(x), F.max_pool2d(y, 2), rtol=1e-12, atol=1e-12)
