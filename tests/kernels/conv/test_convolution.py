"""The convolution for per-task weights against PyTorch's, in value and in derivatives of first and second order."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from mamllit.kernels.conv import kernels as conv_kernels
from mamllit.kernels.conv.convolution import conv
from mamllit.kernels.conv.places import same_padding

SHAPES = [(1, 13, 2), (3, 12, 1), (6, 7, 2), (6, 4, 2), (5, 9, 1)]  # channels, side, stride


@pytest.fixture(params=["patches", "library"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to convolve a batch of tasks, whatever the shape."""
    for name in ("PATCH_BYTES", "WEIGHT_PATCH_BYTES"):
        monkeypatch.setattr(conv_kernels, name, 10**9 if request.param == "patches" else -1)
    monkeypatch.setattr(conv_kernels, "THIN_ROWS", 10**9)
    monkeypatch.setattr(conv_kernels, "BLOCK_BYTES", 2**12)  # several blocks of tasks
    return request.param


def reference(x: Tensor, weight: Tensor, stride: int, same: bool = True) -> Tensor:
    top, bottom = same_padding(x.shape[1], weight.shape[-1], stride) if same else (0, 0)
    padded = F.pad(x, (0, 0, top, bottom, top, bottom)).permute(0, 3, 1, 2)
    return F.conv2d(padded, weight, stride=stride).permute(0, 2, 3, 1)


def tensors(channels: int, side: int, tasks: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images [T, n, S, S, C], weights [T, O, C, 3, 3] and a direction in weight space, float64."""
    x = torch.randn(tasks, 2, side, side, channels, dtype=torch.float64)
    weight, direction = torch.randn(2, tasks, 4, channels, 3, 3, dtype=torch.float64)
    return x, weight, direction


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("channels", "side", "stride"), [*SHAPES, (2, 8, 2)])
def test_values_and_first_derivatives(channels: int, side: int, stride: int, same: bool, way: str) -> None:
    x, weight, _ = tensors(channels, side)

    def loss(function, x: Tensor, weight: Tensor) -> Tensor:
        return function(x, weight, stride, same).sin().sum()

    torch.testing.assert_close(
        vmap(lambda x, w: conv(x, w, stride, same))(x, weight),
        torch.stack([reference(a, w, stride, same) for a, w in zip(x, weight, strict=True)]),
        rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    ours = vmap(grad(lambda x, w: loss(conv, x, w), argnums=(0, 1)))(x, weight)
    for task in range(len(x)):
        theirs = grad(lambda x, w: loss(reference, x, w), argnums=(0, 1))(x[task], weight[task])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a[task], b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("channels", "side", "stride"), SHAPES)
def test_hessian_vector_products(channels: int, side: int, stride: int, shared: bool, same: bool, way: str) -> None:
    """The derivative of <gradient, direction> with respect to weights and images; `shared`: one weight for all tasks."""
    x, weight, direction = tensors(channels, side)

    def slope(function, x: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
        def loss(weight: Tensor) -> Tensor:
            return function(function(x, weight, stride, same).sin(), inner, 1).square().mean()

        return (grad(loss)(weight) * direction).sum()

    inner = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    second = grad(lambda x, w, d: slope(conv, x, w, d), argnums=(0, 1))
    ours = vmap(second, in_dims=(0, None if shared else 0, 0))(x, weight[0] if shared else weight, direction)
    for task in range(len(x)):
        w = weight[0] if shared else weight[task]
        theirs = grad(lambda x, w, d: slope(reference, x, w, d), argnums=(0, 1))(x[task], w, direction[task])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a[task], b, rtol=1e-9, atol=1e-9)


def test_nested_vmap_folds_both_dimensions(way: str) -> None:
    """Particles within tasks: [T, P] weights, one set of images per task."""
    x, weight, _ = tensors(3, 8)
    particles = torch.stack([weight, 2 * weight], 1)
    out = vmap(lambda x, w: vmap(lambda w: conv(x, w, 1))(w))(x, particles)
    assert out.shape == (3, 2, 2, 8, 8, 4)
    torch.testing.assert_close(out[:, 1], 2 * out[:, 0])
    torch.testing.assert_close(out[1, 0], reference(x[1], weight[1], 1), rtol=1e-10, atol=1e-10)


def test_a_weight_in_any_memory_order_will_do() -> None:
    x, weight, _ = tensors(6, 7, tasks=1)
    for order in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(
            conv(x[0], weight[0].contiguous(memory_format=order), 2), reference(x[0], weight[0], 2), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(28, 3, 2, (0, 1)), (14, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (84, 3, 1, (1, 1))]
)
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == padding


def test_a_kernel_smaller_than_the_stride_leaves_zeros_between() -> None:
    grad_, weight = torch.randn(2, 3, 2, 2, 4, dtype=torch.float64), torch.randn(2, 4, 5, 1, 1, dtype=torch.float64)
    found = conv_kernels.conv_input_grad(grad_, weight, 2, False, 4, 4)
    expected = torch.zeros(2, 3, 4, 4, 5, dtype=torch.float64)
    expected[:, :, ::2, ::2] = torch.einsum("tnhwo,toc->tnhwc", grad_, weight[..., 0, 0])
    torch.testing.assert_close(found, expected)
