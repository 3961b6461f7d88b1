"""The layers with a weight, by their names."""

import pytest
from torch import nn

from mamllit.backbones import MLP, Conv4
from mamllit.methods.parts.layers import names_in, weight_layers


def test_linear_layers_and_convolutions_count_and_norms_do_not() -> None:
    assert weight_layers(MLP(4, [3], 2, norm=True)) == ["layers.0", "layers.1"]
    assert weight_layers(Conv4(1, 4, 3, 16, "stride", norm_scale=True)) == [*(f"convs.{i}" for i in range(4)), "head"]
    assert weight_layers(nn.Sequential(nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1))) == ["0"]


def test_a_layer_alone_has_its_parameters_without_a_prefix() -> None:
    assert weight_layers(nn.Linear(2, 3)) == [""]
    assert names_in("") == ("weight", "bias")
    assert names_in("layers.0") == ("layers.0.weight", "layers.0.bias")


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PReLU has no layer with a weight: .* use a network of linear layers or"):
        weight_layers(nn.PReLU())
