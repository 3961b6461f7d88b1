"""CAVIA: what the context does, that nothing else moves, and what ties it to MAML."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import CAVIA, MAML
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def on_sine(size: int = 3, lr: float = 0.5, steps: int = 2) -> CAVIA:
    return CAVIA(MLP(1, [8, 8], 1, activation="tanh"), Regression(), lr, steps, "mean", size, "layers.0").double()


def on_images(size: int = 6, steps: int = 2) -> CAVIA:
    net = Conv4(1, 4, 3, 8, "stride", norm_scale=True)
    return CAVIA(net, Classification(), 0.5, steps, "mean", size, "norms.2").double()


@pytest.mark.parametrize("make", [on_sine, on_images])
def test_a_context_of_zero_is_the_plain_network(
    make: Any, image_episodes: Callable[..., Episode], sine_episodes: Callable[..., Episode]
) -> None:
    method, x = make(), (image_episodes(1) if make is on_images else sine_episodes(1)).query.x[0]
    assert torch.equal(method.predict(method.start(1), x), method.backbone(x))


@pytest.mark.parametrize("make", [on_sine, on_images])
def test_adaptation_moves_the_context_only(
    make: Any, image_episodes: Callable[..., Episode], sine_episodes: Callable[..., Episode]
) -> None:
    method = make()
    episode = one(image_episodes(1) if make is on_images else sine_episodes(1))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    state = method.adapt(episode.support)
    assert list(state) == ["context"]
    assert state["context"].abs().min() > 0
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert not torch.allclose(method.predict(state, episode.query.x), method.backbone(episode.query.x))


def test_acting_on_a_bias_is_concatenating_to_the_input(sine_episodes: Callable[..., Episode]) -> None:
    method, x = on_sine(), one(sine_episodes(1)).query.x
    context = torch.randn(3).double()
    first, second, third = method.backbone.layers
    joined = torch.cat([x, context.expand(len(x), 3)], 1)
    hidden = linear(joined, torch.cat([first.weight, method.from_context], 1), first.bias).tanh()
    torch.testing.assert_close(method.predict({"context": context}, x), third(second(hidden).tanh()), **CLOSE)


def test_film_scales_and_shifts_the_normed_channels(image_episodes: Callable[..., Episode]) -> None:
    method, x = on_images(), one(image_episodes(1, side=32)).query.x  # the norm sees maps of 4x4
    with torch.no_grad():  # so that beta and gamma matter
        method.backbone.norms[2].beta.normal_()
        method.backbone.norms[2].gamma.uniform_(0.5, 2)
    context = torch.randn(6).double()
    scale, shift = (method.from_context @ context).view(2, 4, 1, 1)
    ours, norm = method.predict({"context": context}, x), method.backbone.norms[2]
    norm.register_forward_hook(lambda module, args, normed: normed * (1 + scale) + shift)
    torch.testing.assert_close(ours, method.backbone(x), **CLOSE)


def test_a_context_that_is_the_bias_gives_maml_on_that_bias(sine_episodes: Callable[..., Episode]) -> None:
    """With C = 1, a step of the context is a step of the first layer's bias."""
    method, episodes = on_sine(8, 0.1), sine_episodes(3)
    with torch.no_grad():
        method.from_context.copy_(torch.eye(8))
    frozen = [name for name, _ in method.backbone.named_parameters() if name != "layers.0.bias"]
    maml = MAML(method.backbone, Regression(), 0.1, 2, "mean", frozen=frozen)
    ours, theirs = MetaGradient(method)(episodes), MetaGradient(maml)(episodes)
    torch.testing.assert_close(ours.loss, theirs.loss, **CLOSE)
    for name, expected in theirs.gradient.items():
        torch.testing.assert_close(ours.gradient[name], expected, **CLOSE)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_the_slope(
    steps: int, sine_episodes: Callable[..., Episode], assert_meta_gradient_is_the_slope: Callable[..., None]
) -> None:
    assert_meta_gradient_is_the_slope(on_sine(steps=steps), sine_episodes(3))


def test_film_reaches_the_outer_gradient(image_episodes: Callable[..., Episode]) -> None:
    gradient = MetaGradient(on_images())(image_episodes(2)).gradient
    assert gradient["method.from_context"].norm() > 1e-6
    assert gradient["method.backbone.convs.0.weight"].norm() > 1e-6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"context_size": 0}, r"context_size is 0; it must be >= 1"),
        ({"layer": "layers.7"}, r"layer is 'layers.7', which MLP does not have; it has \['layers', 'layers.0'"),
        ({"layer": "layers"}, r"a context cannot act on the layer 'layers', a ModuleList; name a linear layer with bias, or a"),
        ({"backbone": nn.Sequential(nn.Linear(1, 1, bias=False)), "layer": "0"}, r"cannot act on the layer '0', a Linear"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {
        "backbone": MLP(1, [4], 1), "objective": Regression(), "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean",
        "context_size": 2, "layer": "layers.0",
    }  # fmt: skip
    CAVIA(**right)
    with pytest.raises(ValueError, match=message):
        CAVIA(**{**right, **wrong})
