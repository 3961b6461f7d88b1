"""ResNet-12: its size, its shapes, and that it can be trained."""

import pytest
import torch

from mamllit.backbones import ResNet12


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
