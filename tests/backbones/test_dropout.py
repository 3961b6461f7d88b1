"""Dropout of Conv4: in which places, how often, and that nothing but the images decides."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from mamllit.backbones import Conv4
from mamllit.backbones.dropout import dropped, key_of_images
from mamllit.core.episode import Episode
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.kernels.dropout import factors
from mamllit.methods import MatchingNetworks
from mamllit.objectives import Classification

SHARE = 0.25
KEYS = torch.tensor([3, 2**32 - 1, 5])


def net(implementation: Any = "plain", downsample: Any = "max_pool", dropout: float = SHARE) -> Conv4:
    torch.manual_seed(1)
    return Conv4(1, 4, None, 20, downsample, True, implementation=implementation, dropout=dropout).double()


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, 1, 20, 20, dtype=torch.float64)


def test_a_share_of_the_values_is_dropped_and_the_others_make_up_for_it() -> None:
    drawn = [factors(key, stream, (200, 500), 0.1, torch.float64) for key in KEYS for stream in (0, 1)]
    for value in drawn:
        assert value.unique().tolist() == pytest.approx([0, 1 / 0.9])
        assert float((value == 0).double().mean()) == pytest.approx(0.1, abs=0.005)
    correlation = torch.corrcoef(torch.stack([value.flatten() for value in drawn])) - torch.eye(6)
    assert correlation.abs().max() < 0.02  # keys and streams are independent


def test_the_key_alone_decides() -> None:
    before = torch.get_rng_state()

    def draw(key: Tensor) -> Tensor:
        return factors(key, 2, (3, 4), SHARE, torch.float32)

    together = vmap(draw)(KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(17)
    assert torch.equal(torch.stack([draw(key) for key in KEYS]), together)
    assert torch.equal(vmap(lambda x, key: x * draw(key), (0, None))(torch.ones(2, 3, 4), KEYS[0])[1], together[0])


@pytest.mark.parametrize("downsample", ["max_pool", "stride"])
@pytest.mark.parametrize("implementation", ["plain", "fast"])
def test_it_follows_each_block_in_training_alone(implementation: Any, downsample: Any) -> None:
    network, x = net(implementation, downsample), images(6)
    key, z = key_of_images(x), x
    plain = net("plain", downsample)
    for block, (convolve, norm) in enumerate(zip(plain.convs, plain.norms, strict=True)):
        z = F.relu(norm(convolve(z)))
        z = F.max_pool2d(z, 2) if downsample == "max_pool" else z
        z = z * factors(key, block, z.permute(0, 2, 3, 1).shape, SHARE, z.dtype).permute(0, 3, 1, 2)
    expected = z.permute(0, 2, 3, 1).flatten(1) if downsample == "max_pool" else z.mean((2, 3))
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network.eval()(x), net(implementation, downsample, 0.0)(x), rtol=0, atol=0)
    assert not torch.equal(network(x), network.train()(x))


def test_a_derivative_of_a_derivative_goes_through_what_was_kept() -> None:
    x, key = torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.tensor(7)
    kept = dropped(torch.ones_like(x), SHARE, key, 0)
    slope = grad(lambda v: grad(lambda u: dropped(u**3, SHARE, key, 0).sum())(v).sum())(x)
    torch.testing.assert_close(slope, 6 * x * kept)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_meta_gradient_is_the_same_however_the_episodes_run(compiled: bool, image_episodes: Callable[..., Episode]) -> None:
    """On ranks, in chunks, recorded or not: the choice of a task is its own, and another one has another."""
    episodes = image_episodes(4, ways=3, shots=2, queries=2, side=20)
    whole = MetaGradient(MatchingNetworks(net(), Classification()), "vmap", compiled)
    expected = whole(episodes)
    method = MatchingNetworks(net("fast"), Classification())
    torch.manual_seed(3)
    for execution in (1, 3, "loop"):
        found = MetaGradient(method, execution)(episodes)
        torch.testing.assert_close(found._asdict(), expected._asdict(), rtol=1e-7, atol=1e-9)
    other = image_episodes(4, ways=3, shots=2, queries=2, side=20)
    torch.testing.assert_close(whole(other).loss, MetaGradient(method)(other).loss)  # nothing of the first batch is kept
    undropped = MetaGradient(MatchingNetworks(net(dropout=0.0), Classification()))(episodes)
    assert not torch.allclose(undropped.loss, expected.loss)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_share_out_of_bounds_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"dropout is {dropout}; it must be in [0, 1)")):
        net(dropout=dropout)
