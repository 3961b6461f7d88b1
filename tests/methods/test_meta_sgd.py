"""Meta-SGD: what ties it to MAML, the derivative by the step sizes, and learn2learn's implementation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML, MetaSGD
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def smooth(steps: int = 2) -> MetaSGD:
    """A smooth net whose step sizes have both signs."""
    method = MetaSGD(MLP(1, [8, 8], 1, activation="tanh"), Regression(), "mean", inner_steps=steps).double()
    with torch.no_grad():
        for rate in method.rates:
            rate.copy_(0.05 * torch.randn_like(rate))
    return method


@pytest.mark.parametrize("steps", [1, 3])
def test_equal_step_sizes_give_maml(steps: int, image_episodes: Callable[..., Episode]) -> None:
    net, episodes = Conv4(1, 4, 3, 8, "stride").double(), image_episodes(3)
    method = MetaSGD(net, Classification(), "sum_over_shots", (0.1, 0.1), steps).double()
    with torch.no_grad():
        for rate in method.rates:
            rate.fill_(0.1)  # exactly: the initial draw was float32
    ours = MetaGradient(method)(episodes)
    theirs = MetaGradient(MAML(net, Classification(), 0.1, steps, "sum_over_shots"))(episodes)
    torch.testing.assert_close((ours.loss, ours.logs), (theirs.loss, theirs.logs), **CLOSE)
    for name, expected in theirs.gradient.items():
        torch.testing.assert_close(ours.gradient[name], expected, **CLOSE)


def test_the_derivative_by_a_step_size_is_minus_the_product_of_the_gradients(sine_episodes: Callable[..., Episode]) -> None:
    """After one step: d L_q / d alpha_j = - (grad L_q at phi)_j (grad L_s at theta)_j."""
    method, episode = smooth(1), one(sine_episodes(1))
    names = list(method.adapted)

    def gradient(point: dict[str, Tensor], examples: Examples) -> tuple[Tensor, ...]:
        leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
        return torch.autograd.grad(F.mse_loss(method.predict(leaves, examples.x), examples.y), list(leaves.values()))

    support = gradient(method.start(1), episode.support)
    query = gradient(method.adapt(episode.support), episode.query)
    by_rate = torch.autograd.grad(method.meta_loss(episode)[0], list(method.rates))
    assert len(names) == len(by_rate) == 6
    for found, s, q in zip(by_rate, support, query, strict=True):
        torch.testing.assert_close(found, -s * q, **CLOSE)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_the_slope(
    steps: int, sine_episodes: Callable[..., Episode], assert_meta_gradient_is_the_slope: Callable[..., None]
) -> None:
    assert_meta_gradient_is_the_slope(smooth(steps), sine_episodes(3))


@pytest.mark.parametrize("steps", [1, 3])
def test_equals_learn2learn(steps: int, sine_episodes: Callable[..., Episode]) -> None:
    l2l = pytest.importorskip("learn2learn", reason="learn2learn, the oracle of this test, is not installed")
    net, episodes = MLP(1, [40, 40], 1).double(), sine_episodes(3, shots=10, queries=10)
    theirs = l2l.algorithms.MetaSGD(net, lr=0.02)
    for i in range(3):
        support, query = one(episodes, i)
        learner = theirs.clone()
        for _ in range(steps):
            learner.adapt(F.mse_loss(learner(support.x), support.y))
        (F.mse_loss(learner(query.x), query.y) / 3).backward()
    expected = [value.grad for value in (*net.parameters(), *theirs.lrs)]
    method = MetaSGD(net, Regression(), "mean", (0.02, 0.02), steps, frozen=()).double()
    with torch.no_grad():
        for rate in method.rates:
            rate.fill_(0.02)
    ours = list(MetaGradient(method)(episodes).gradient.values())
    assert len(ours) == 12
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-10)


def test_the_step_sizes_start_between_the_bounds_and_differ() -> None:
    method = MetaSGD(MLP(1, [40, 40], 1), Regression(), "mean")
    rates = torch.cat([rate.detach().reshape(-1) for rate in method.rates])
    assert len(rates) == 1761
    assert 0.005 <= rates.min() < 0.01
    assert 0.095 < rates.max() <= 0.1
    assert {name: rate.shape for name, rate in method.learned_rates().items()} == {
        name: value.shape for name, value in method.backbone.named_parameters()
    }


def test_frozen_parameters_have_no_step_size(image_episodes: Callable[..., Episode]) -> None:
    method = MetaSGD(Conv4(1, 4, 3, 8, "stride").double(), Classification(), "mean").double()
    assert "convs.0.weight" in method.learned_rates()
    assert not any(name.endswith("beta") for name in method.learned_rates())
    assert set(method.adapt(one(image_episodes(1)).support)) == set(method.learned_rates())


def test_training_makes_some_step_sizes_negative_and_a_checkpoint_keeps_them(
    tmp_path: Path, sine_episodes: Callable[..., Episode]
) -> None:
    method = MetaSGD(MLP(1, [20, 20], 1), Regression(), "mean")
    optimizer, step = torch.optim.Adam(method.parameters(), 0.01), MetaGradient(method)
    for _ in range(30):
        gradient = step(sine_episodes(8, dtype=torch.float32)).gradient
        for value, g in zip(method.parameters(), gradient.values(), strict=True):
            value.grad = g
        optimizer.step()
    trained = torch.cat([rate.detach().reshape(-1) for rate in method.rates])
    assert 0.1 < (trained < 0).float().mean() < 0.9
    torch.save(method.state_dict(), tmp_path / "weights.pt")
    again = MetaSGD(MLP(1, [20, 20], 1), Regression(), "mean")
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(torch.cat([rate.detach().reshape(-1) for rate in again.rates]), trained)


def test_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inner_lr is \(0.1, 0.05\); the second bound must be >= the first"):
        MetaSGD(MLP(1, [4], 1), Regression(), "mean", (0.1, 0.05))
