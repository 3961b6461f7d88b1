"""ANIL: MAML with a frozen body, learn2learn's implementation, and a body that is run once."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import ANIL, MAML
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def same(ours: MetaGradient, theirs: MetaGradient, episodes: Episode) -> None:
    torch.testing.assert_close(ours(episodes)._asdict(), theirs(episodes)._asdict(), **CLOSE)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_it_is_maml_with_a_frozen_body(downsample: str, first_order: bool, image_episodes: Callable[..., Episode]) -> None:
    net, episodes = Conv4(1, 4, 3, 16, downsample).double(), image_episodes(3, side=16)  # type: ignore[arg-type]
    maml = MAML(net, Classification(), 0.1, 3, "sum_over_shots", first_order, frozen=["convs.*", "norms.*"])
    same(MetaGradient(ANIL(net, Classification(), 0.1, 3, "sum_over_shots", first_order)), MetaGradient(maml), episodes)


def test_on_a_network_of_one_layer_it_is_maml(sine_episodes: Callable[..., Episode]) -> None:
    net = MLP(1, [], 1).double()
    maml = MAML(net, Regression(), 0.01, 2, "mean")
    same(MetaGradient(ANIL(net, Regression(), 0.01, 2, "mean")), MetaGradient(maml), sine_episodes(3))


def test_the_inner_loop_leaves_the_body_alone_and_the_outer_loop_does_not(image_episodes: Callable[..., Episode]) -> None:
    net = Conv4(1, 4, 3, 16, "max_pool").double()
    method, episode = ANIL(net, Classification(), 0.1, 2, "mean"), one(image_episodes(1, side=16))
    state = method.adapt(episode.support)
    assert set(state) == {"weight", "bias"}
    assert not torch.equal(state["weight"], net.head.weight)
    method.meta_loss(episode)[0].backward()
    assert all(value.grad is not None and value.grad.norm() > 1e-6 for value in (net.convs[0].weight, net.norms[0].beta))


def test_the_meta_gradient_is_the_slope(
    sine_episodes: Callable[..., Episode], assert_meta_gradient_is_the_slope: Callable[..., None]
) -> None:
    method = ANIL(MLP(1, [8, 8], 1, activation="tanh").double(), Regression(), 0.05, 3, "mean")
    assert_meta_gradient_is_the_slope(method, sine_episodes(3))


@pytest.mark.parametrize("steps", [1, 3])
def test_equals_learn2learn(steps: int, sine_episodes: Callable[..., Episode]) -> None:
    """Its recipe: MAML around the head, the body in front of it."""
    l2l = pytest.importorskip("learn2learn", reason="learn2learn, the oracle of this test, is not installed")
    net, episodes = MLP(1, [40, 40], 1).double(), sine_episodes(3, shots=10, queries=10)
    head = l2l.algorithms.MAML(net.head, lr=0.02)
    for i in range(3):
        support, query = one(episodes, i)
        learner, features = head.clone(), net.features(support.x)
        for _ in range(steps):
            learner.adapt(F.mse_loss(learner(features), support.y))
        (F.mse_loss(learner(net.features(query.x)), query.y) / 3).backward()
    ours = MetaGradient(ANIL(net, Regression(), 0.02, steps, "mean"))(episodes).gradient
    for name, value in net.named_parameters():
        torch.testing.assert_close(ours[f"method.backbone.{name}"], value.grad, rtol=1e-7, atol=1e-10)


def test_the_supports_features_are_computed_once(image_episodes: Callable[..., Episode]) -> None:
    net, calls = Conv4(1, 4, 3, 16, "stride").double(), []
    net.convs[0].register_forward_hook(lambda *_: calls.append(1))
    ANIL(net, Classification(), 0.1, 5, "mean").adapt(one(image_episodes(1, side=16)).support)
    assert len(calls) == 1


def test_a_network_without_features_or_head_is_refused() -> None:
    for net in (nn.Linear(1, 1), Conv4(1, 4, None, 16, "stride")):
        with pytest.raises(ValueError, match=rf"{type(net).__name__} has no method `features` or no module `head`.*give it"):
            ANIL(net, Regression(), 0.1, 1, "mean")


def test_a_negative_number_of_steps_is_refused() -> None:
    method = ANIL(MLP(1, [4], 1), Regression(), 0.01, 1, "mean")
    with pytest.raises(ValueError, match=r"steps is -1; it must be >= 0"):
        method.adapt(Examples(torch.rand(3, 1), torch.rand(3, 1)), steps=-1)
