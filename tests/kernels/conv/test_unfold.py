"""`unfold` against PyTorch's, and its derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from mamllit.kernels.conv.places import Places
from mamllit.kernels.conv.unfold import unfold

CASES = [(3, 1, True), (3, 2, True), (3, 2, False)]  # kernel, stride, same


@pytest.mark.parametrize(("kernel", "stride", "same"), CASES)
def test_patches_and_a_one(kernel: int, stride: int, same: bool) -> None:
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64)
    (top, bottom), (left, right) = Places(kernel, stride, same).padding(6, 5)
    plain = F.unfold(F.pad(x, (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2), kernel, stride=stride)
    found = unfold(x, kernel, stride, same)
    assert (found[..., -1] == 1).all()
    channels_last = found[..., :-1].unflatten(-1, (kernel * kernel, 3)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(channels_last.flatten(1, 2).mT, plain)


@pytest.mark.parametrize(("kernel", "stride", "same"), CASES)
def test_derivatives_by_the_images(kernel: int, stride: int, same: bool) -> None:
    def squared(x: Tensor) -> Tensor:
        return unfold(x, kernel, stride, same).square()

    x = torch.randn(2, 4, 4, 1, dtype=torch.float64, requires_grad=True)
    assert gradcheck(squared, x)
    assert gradgradcheck(squared, x)
    assert gradcheck(vmap(vmap(squared)), torch.randn(2, 1, 2, 4, 4, 1, dtype=torch.float64, requires_grad=True))
