"""The nets against the papers' sizes, TensorFlow's padding, and PyTorch's own layers."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mamllit.backbones import MLP, BatchStatNorm, Conv4, SameConv2d
from mamllit.kernels.conv.places import same_padding


def size(net: nn.Module) -> int:
    return sum(value.numel() for value in net.parameters())


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "parameters"), [(1, 111_936), (3, 113_088)])
def test_conv4_64_without_head_has_the_known_size(channels: int, parameters: int) -> None:
    assert size(Conv4(channels, 64, None, 84, "max_pool", norm_scale=True)) == parameters


@pytest.mark.parametrize(("norm_scale", "parameters"), [(True, 32_901), (False, 32_773)])
def test_conv4_32_for_mini_imagenet_5_way_has_the_known_size(norm_scale: bool, parameters: int) -> None:
    assert size(Conv4(3, 32, 5, 84, "max_pool", norm_scale=norm_scale)) == parameters


def test_the_no_convolution_omniglot_net_has_the_known_size() -> None:
    assert size(MLP(784, [256, 128, 64, 64], 5)) == 246_597
    assert size(MLP(784, [256, 128, 64, 64], 5, norm=True)) == 246_597 + 512


def test_the_sine_net_has_the_known_size() -> None:
    assert size(MLP(1, [40, 40], 1)) == 40 + 40 + 1600 + 40 + 40 + 1


@pytest.mark.parametrize(
    ("image_size", "downsample", "sides", "features"),
    [(28, "stride", [14, 7, 4, 2], 4), (84, "max_pool", [84, 42, 21, 10], 4 * 25), (28, "max_pool", [28, 14, 7, 3], 4)],
)
def test_feature_maps_shrink_as_in_the_paper(image_size: int, downsample: Any, sides: list[int], features: int) -> None:
    """The sides of the four convolutions' outputs (before pooling), and the number of features after the last block."""
    net = Conv4(1, 4, None, image_size, downsample)
    seen: list[torch.Size] = []
    for conv in net.convs:
        conv.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert net(torch.rand(2, 1, image_size, image_size)).shape == (2, features)
    assert seen == [(2, 4, side, side) for side in sides]


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_conv4_gives_one_score_per_class(downsample: Any) -> None:
    assert Conv4(3, 4, 7, 20, downsample)(torch.rand(2, 3, 20, 20)).shape == (2, 7)


def test_mlp_flattens_images() -> None:
    assert MLP(12, [5], 2, norm=True)(torch.rand(3, 1, 3, 4)).shape == (3, 2)


# ---- convolution ---------------------------------------------------------------------------------------------------

SAME = [(28, (0, 1)), (14, (0, 1)), (7, (1, 1)), (4, (0, 1))]


@pytest.mark.parametrize(("side", "padding"), SAME)
def test_same_padding_at_stride_2_is_tensorflows(side: int, padding: tuple[int, int]) -> None:
    assert same_padding(side, 3, 2) == padding


@pytest.mark.parametrize("side", [84, 42, 21, 10])
def test_same_padding_at_stride_1_is_one_on_both_sides(side: int) -> None:
    assert same_padding(side, 3, 1) == (1, 1)


def test_same_padding_is_never_negative() -> None:
    assert same_padding(4, 1, 2) == (0, 0)


@pytest.mark.parametrize("implementation", ["plain", "fast"])
@pytest.mark.parametrize(("side", "padding"), SAME)
def test_same_convolution_equals_conv2d_on_a_padded_image(side: int, padding: tuple[int, int], implementation: Any) -> None:
    conv = SameConv2d(2, 3, stride=2, implementation=implementation).double()
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 2, side, side, dtype=torch.float64)
    expected = F.conv2d(F.pad(x, padding * 2), conv.weight, conv.bias, stride=2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["plain", "fast"])
def test_same_convolution_of_a_wide_image_at_stride_1_equals_padding_1(implementation: Any) -> None:
    conv = SameConv2d(3, 4, implementation=implementation).double()
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


# ---- norm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 5, 3)], ids=["vectors", "images"])
def test_batch_stat_norm_equals_batch_norm_in_training(shape: tuple[int, ...], scale: bool) -> None:
    norm = BatchStatNorm(4, scale=scale).double()
    for value in norm.parameters():
        nn.init.normal_(value)
    x = 3 * torch.randn(shape, dtype=torch.float64) + 1
    expected = F.batch_norm(x, None, None, norm.gamma, norm.beta, training=True, eps=1e-3)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_batch_stat_norm_starts_as_the_identity_with_eps_1e_3() -> None:
    """Values -1 and 1: variance 1, so the result is 1 / sqrt(1.001). In evaluation mode it is the same."""
    norm = BatchStatNorm(1, scale=True)
    assert norm.eps == 1e-3
    output = norm.eval()(torch.tensor([[-1.0], [1.0]]))
    torch.testing.assert_close(output, torch.tensor([[-1.0], [1.0]]) / math.sqrt(1.001))
    assert [name for name, _ in BatchStatNorm(1).named_parameters()] == ["beta"]
    assert not list(norm.buffers())


# ---- initialisation ------------------------------------------------------------------------------------------------


def test_conv4_convolutions_start_xavier_uniform_with_zero_biases() -> None:
    net = Conv4(3, 64, 5, 84, "max_pool")
    for conv, channels in zip(net.convs, [3, 64, 64, 64], strict=True):
        bound = math.sqrt(6 / (9 * channels + 9 * 64))
        assert 0.98 * bound < conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert conv.weight.mean().abs() < 0.05 * bound
        assert not conv.bias.any()
    assert not any(norm.beta.any() for norm in net.norms)


def test_the_omniglot_head_starts_normal_with_std_1() -> None:
    head = Conv4(1, 64, 200, 28, "stride").head
    assert head.weight.shape == (200, 64)
    assert head.weight.std().item() == pytest.approx(1, rel=0.03)
    assert head.weight.abs().max() > 3  # not uniform, not cut at 2
    assert not head.bias.any()


def test_the_mini_imagenet_head_starts_xavier_uniform() -> None:
    head = Conv4(3, 32, 20, 84, "max_pool").head
    bound = math.sqrt(6 / (800 + 20))
    assert 0.99 * bound < head.weight.abs().max() <= bound
    assert head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not head.bias.any()


def test_the_papers_mlp_starts_truncated_normal_with_zero_biases() -> None:
    """Cut at two standard deviations of 0.01, which leaves a standard deviation of 0.00880."""
    net = MLP(784, [64, 64], 5, init="paper")
    for layer in net.layers:
        assert layer.weight.abs().max() <= 0.02
        assert not layer.bias.any()
    weight = net.layers[0].weight
    assert weight.abs().max() > 0.0199
    assert weight.std().item() == pytest.approx(0.00880, rel=0.02)
    assert weight.mean().abs() < 0.0002


def test_the_default_mlp_starts_as_torch_does() -> None:
    net = MLP(100, [50], 5)
    assert 0.09 < net.layers[0].weight.abs().max() <= 0.1
    assert net.layers[0].bias.any()


# ---- the forward pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("tanh", torch.tanh)])
def test_mlp_is_linear_norm_activation_linear(activation: Any, function: Any) -> None:
    net = MLP(3, [4], 2, norm=True, activation=activation)
    x = torch.randn(5, 3)
    first, last = net.layers
    expected = last(function(net.norms[0](first(x))))
    torch.testing.assert_close(net(x), expected)


def test_conv4_is_conv_norm_relu_pool_and_a_head_over_the_flattened_map() -> None:
    net = Conv4(2, 3, 4, 32, "max_pool")
    x = torch.randn(3, 2, 32, 32)
    y = x
    for conv, norm in zip(net.convs, net.norms, strict=True):
        y = F.conv2d(y, conv.weight, conv.bias, padding=1)
        y = F.max_pool2d(F.relu(F.batch_norm(y, None, None, None, norm.beta, training=True, eps=1e-3)), 2)
    torch.testing.assert_close(net(x), net.head(y.permute(0, 2, 3, 1).flatten(1)), rtol=1e-4, atol=1e-5)


def test_conv4_with_stride_averages_the_last_map() -> None:
    net = Conv4(1, 3, 4, 28, "stride")
    x = torch.randn(3, 1, 28, 28)
    y = x
    for conv, norm, (_, padding) in zip(net.convs, net.norms, SAME, strict=True):
        y = F.conv2d(F.pad(y, padding * 2), conv.weight, conv.bias, stride=2)
        y = F.relu(F.batch_norm(y, None, None, None, norm.beta, training=True, eps=1e-3))
    torch.testing.assert_close(net(x), net.head(y.mean((2, 3))), rtol=1e-4, atol=1e-5)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"downsample": "pool"}, r"downsample is 'pool'; it must be 'stride' or 'max_pool'"),
        ({"implementation": "fft"}, r"implementation is 'fft'; it must be 'plain' or 'fast'"),
        ({"image_size": 15}, r"image_size is 15; four 2x2 poolings need at least 16"),
    ],
)
def test_conv4_refuses_wrong_arguments(wrong: dict, message: str) -> None:
    right: dict[str, Any] = {
        "in_channels": 1,
        "filters": 2,
        "out_features": 2,
        "image_size": 16,
        "downsample": "max_pool",
    }
    Conv4(**right)
    with pytest.raises(ValueError, match=message):
        Conv4(**{**right, **wrong})


@pytest.mark.parametrize(("said", "meant"), [("per_task", "fast"), ("conv2d", "plain"), (None, "plain")])
def test_what_older_configurations_say_is_understood(said: Any, meant: str) -> None:
    assert Conv4(1, 2, 2, 16, "max_pool", conv_algorithm=said).implementation == meant


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "gelu"}, r"activation is 'gelu'; it must be one of \['relu', 'tanh'\]"),
        ({"init": "zeros"}, r"init is 'zeros'; it must be 'torch' or 'paper'"),
    ],
)
def test_mlp_refuses_wrong_arguments(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(1, [2], 1, **wrong)
