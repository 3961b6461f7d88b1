"""The norm that is folded into a convolution's weights against the norm itself, and when it is."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mamllit.backbones import Conv4, SameConv2d, conv4
from mamllit.backbones.norm import BatchStatNorm, statistics_from
from mamllit.kernels.conv import kernels as conv_kernels
from mamllit.kernels.conv.convolution import conv
from mamllit.kernels.conv.unfold import unfold
from mamllit.kernels.norm.moments import fold, moments

CASES = [(3, 1, True), (3, 2, True), (3, 2, False)]  # kernel, stride, same


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def plain_moments(x: Tensor, stride: int, same: bool, kernel: int) -> tuple[Tensor, Tensor]:
    size = x.shape[-1] * kernel**2
    one = torch.eye(size, dtype=x.dtype).view(size, kernel, kernel, x.shape[-1]).permute(0, 3, 1, 2)
    rows = conv(x, one, stride, same).flatten(0, -2)
    return rows.mean(0), torch.cov(rows.T, correction=0)


@pytest.mark.parametrize(("kernel", "stride", "same"), CASES)
def test_moments_are_those_of_the_patches(kernel: int, stride: int, same: bool) -> None:
    x = random(3, 2, 5, 5, 2) + 100
    found = vmap(lambda x: moments(unfold(x, kernel, stride, same)))(x)
    for task in range(3):
        torch.testing.assert_close(
            tuple(value[task] for value in found), plain_moments(x[task], stride, same, kernel), rtol=1e-9, atol=1e-9
        )


def test_moments_in_float32_lose_nothing_to_a_large_mean() -> None:
    x = random(4, 8, 8, 1)
    _, expected = moments(unfold(x, 3, 1, False))
    _, found = moments(unfold((x + 1000).float(), 3, 1, False))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)  # the pixels themselves have lost 4 of 7 digits


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize("rows", [None, 3], ids=["transductive", "inductive"])
def test_a_network_with_the_norm_folded_is_the_same(downsample: str, rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Conv4(1, 4, 3, 16, downsample).double()  # type: ignore[arg-type]
    params = {name: random(*value.shape) for name, value in net.named_parameters()}
    images = random(2, 5, 1, 16, 16)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
            with statistics_from(rows):
                return functional_call(net, params, (x,)).square().mean()

        def of_gradient(params: dict[str, Tensor], x: Tensor) -> Tensor:
            return sum(value.square().sum() for value in grad(loss)(params, x).values())  # type: ignore[return-value]

        return vmap(loss, (None, 0))(params, images), vmap(grad(of_gradient), (None, 0))(params, images)

    folded = run()
    monkeypatch.setattr(conv4, "SMALL_PATCH", 0)
    torch.testing.assert_close(folded, run(), rtol=1e-9, atol=1e-9)


def test_an_edge_filter_keeps_its_digits_in_float32() -> None:
    """Most of the covariance is brightness, which the filter is blind to."""
    smooth = torch.linspace(0, 50, 64).reshape(1, 8, 8, 1).repeat(4, 1, 1, 1) + 0.1 * torch.randn(4, 8, 8, 1)
    weight = torch.tensor([[-1.0, 2.0, -1.0]]).repeat(3, 1).view(1, 1, 3, 3)
    expected = conv(smooth.double(), weight.double(), 1, False)
    scaled = fold(unfold(smooth, 3, 1, False), weight, torch.zeros(1), 1e-3)
    torch.testing.assert_close(scaled[0, 1] / 2, (expected.var(correction=0) + 1e-3).rsqrt().float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_derivatives_by_the_images(downsample: str) -> None:
    """Of second order, too: an attack on the images differentiates through the inner loop."""
    net = Conv4(1, 2, 3, 16, downsample).double()  # type: ignore[arg-type]
    params = {name: random(*value.shape) for name, value in net.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, params, (x,)).square().mean()

    def of_gradient(x: Tensor) -> Tensor:
        return sum(value.square().sum() for value in grad(loss)(params, x).values())  # type: ignore[return-value]

    x = random(2, 3, 1, 16, 16)
    direction = random(*x.shape)
    found = (vmap(grad(of_gradient))(x) * direction).sum((1, 2, 3, 4))
    ahead, behind = (vmap(of_gradient)(x + step * direction) for step in (1e-6, -1e-6))
    torch.testing.assert_close(found, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)


def test_where_it_is_done() -> None:
    x, convolve, norm = torch.rand(2, 8, 8, 1), SameConv2d(1, 4, add_bias=False), BatchStatNorm(4)
    assert conv4.folds(x, convolve, norm)
    assert not conv4.folds(torch.rand(2, 8, 8, 4), SameConv2d(4, 4), norm)
    assert not conv4.folds(x, convolve, BatchStatNorm(4, scale=True))
    assert not conv4.folds(x, SameConv2d(1, 4, algorithm="conv2d"), norm)
    assert not conv4.folds(x, nn.Identity(), norm)
    with torch.autocast("cpu", torch.bfloat16):
        assert not conv4.folds(x, convolve, norm)
    convolve.register_forward_hook(lambda *_: None)
    assert not conv4.folds(x, convolve, norm)


def test_a_kernel_smaller_than_the_stride_leaves_zeros_between() -> None:
    grad_, weight = random(2, 3, 2, 2, 4), random(2, 4, 5, 1, 1)
    found = conv_kernels.conv_input_grad(grad_, weight, 2, False, 4, 4)
    expected = torch.zeros(2, 3, 4, 4, 5, dtype=torch.float64)
    expected[:, :, ::2, ::2] = torch.einsum("tnhwo,toc->tnhwc", grad_, weight[..., 0, 0])
    torch.testing.assert_close(found, expected)
