"""Koch's network: its size, its maps, its beginning, and what is refused."""

import re
from typing import Any

import pytest
import torch

from mamllit.backbones import KochNet
from mamllit.methods import SiameseNetworks
from mamllit.objectives import Classification


def test_it_has_the_papers_size_and_maps_and_begins_saturated() -> None:
    net = KochNet(1, 105)
    method = SiameseNetworks(net, Classification(), net.feature_size, "verification", "as_drawn")
    assert sum(value.numel() for value in method.parameters()) == 38_951_745
    seen: list[list[int]] = []
    for layer in (*net.convs, net.project):
        layer.register_forward_hook(lambda layer, x, y: seen.append([*y.shape[1:]]))
    features = net((torch.rand(1, 1, 105, 105) < 0.05).float()).detach()
    assert seen == [[64, 96, 96], [128, 42, 42], [128, 18, 18], [256, 6, 6], [4096]]
    assert ((features < 0.1) | (features > 0.9)).float().mean() > 0.7
    means = [float(layer.bias.detach().mean()) for layer in (*net.convs, net.project)]
    assert all(abs(mean - 0.5) < 0.01 for mean in means)
    assert abs(float(net.convs[1].weight.detach().std()) - 0.01) < 1e-4  # type: ignore[operator]
    assert abs(float(net.project.weight.detach().std()) - 0.2) < 1e-3
    plain = KochNet(1, 35, (4, 4, 4, 4), (4, 3, 2, 2), 16, "plain")
    features = plain(torch.rand(1, 1, 35, 35)).detach()
    assert ((features > 0.1) & (features < 0.9)).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": [8, 8, 8]}, "channels is [8, 8, 8] and kernels [10, 7, 4, 4]; there are four convolutions: give four"),
        ({"initialisation": "zero"}, "initialisation is 'zero'; it must be 'koch' or 'plain'"),
        ({"image_size": 28}, "image_size is 28; kernels [10, 7, 4, 4], with pooling in between, need at least 65"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        KochNet(**{"in_channels": 1, "image_size": 105, **wrong})
    assert KochNet(1, 65, (1, 1, 1, 1), features=1)(torch.rand(1, 1, 65, 65)).shape == (1, 1)
