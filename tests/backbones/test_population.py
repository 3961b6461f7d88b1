"""Norms by the statistics of many images: PyTorch's running averages are the oracle."""

import re

import pytest
import torch
from torch import nn

from mamllit.backbones import MLP, BatchStatNorm, Conv4
from mamllit.backbones.population import normalised_by_population


def test_it_is_what_pytorchs_norm_does_after_an_average_over_the_same_batches() -> None:
    torch.manual_seed(0)
    batches = torch.rand(3, 40, 2, 9, 9).unbind()
    own = nn.Sequential(nn.Conv2d(2, 4, 3), BatchStatNorm(4, scale=True), nn.ReLU(), nn.Conv2d(4, 3, 3), BatchStatNorm(3))
    oracle = nn.Sequential(
        own[0], nn.BatchNorm2d(4, eps=1e-3, momentum=None), own[2], own[3], nn.BatchNorm2d(3, eps=1e-3, momentum=None)
    )
    with torch.no_grad():
        own[1].beta.uniform_()
        own[1].gamma.uniform_()
        oracle[1].bias.copy_(own[1].beta)
        oracle[1].weight.copy_(own[1].gamma)
        for batch in batches:
            oracle(batch)
    fixed = normalised_by_population(own, "", batches)
    x = torch.rand(5, 2, 9, 9)
    torch.testing.assert_close(fixed(x), oracle.eval()(x), rtol=2e-3, atol=1e-3)  # PyTorch's variance is the unbiased one
    torch.testing.assert_close(fixed(x[:1]), fixed(x)[:1])
    assert own[1].statistics is own[1].statistics_rows is None
    assert not torch.allclose(own(x), fixed(x), atol=1e-2)


@pytest.mark.parametrize("scale", [True, False])
def test_the_fast_network_is_the_plain_one(scale: bool) -> None:
    nets = [Conv4(1, 8, None, 16, "max_pool", norm_scale=scale, implementation=kind) for kind in ("plain", "fast")]  # type: ignore[arg-type]
    nets[1].load_state_dict({name: value + 0.1 * torch.randn_like(value) for name, value in nets[0].state_dict().items()})
    nets[0].load_state_dict(nets[1].state_dict())
    images, x = torch.rand(30, 1, 16, 16), torch.rand(4, 1, 16, 16)
    plain, fast = (normalised_by_population(net, "", [images])(x) for net in nets)
    torch.testing.assert_close(plain, fast, rtol=1e-4, atol=1e-5)
    flat = normalised_by_population(MLP(6, [5], 3, norm=True), "", [torch.rand(50, 6)])
    assert flat(torch.rand(1, 6)).shape == (1, 3)


def test_what_cannot_be_is_refused() -> None:
    text = "'population' in batch_norm needs mamllit's BatchStatNorm, and the network has none; leave it out"
    for module, network in ((nn.Linear(2, 2), ""), (nn.Sequential(BatchStatNorm(2)), "backbone")):
        with pytest.raises(ValueError, match=re.escape(text)):
            normalised_by_population(module, network, [torch.rand(3, 2)])
    with pytest.raises(ValueError, match="there is no batch of images to take statistics from; give at least one"):
        normalised_by_population(BatchStatNorm(2), "", [])
