"""Calibration against numbers worked out otherwise, and active learning on a task where the best question is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.engine.uncertainty import active_learning, calibration, samples
from mamllit.methods import MAML, PLATIPUS, Method
from mamllit.objectives import Regression


def platipus(models: int = 5) -> PLATIPUS:
    net = MLP(1, [8], 1)
    return PLATIPUS(net, Regression(), 0.01, 1, "mean", 0.1, test_models=models, log_std=-1.0).double()


def one(episodes: Episode, i: int) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def test_the_likelihood_and_the_interval_are_those_of_the_mixture(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = platipus(), sine_episodes(3, queries=50)
    found = calibration(method, episodes, 2, 0.7, level=0.8)
    for i in range(3):
        episode = one(episodes, i)
        outputs = samples(method, method.adapt(episode.support, 2), episode.query.x)[..., 0].T.detach()
        mixture = MixtureSameFamily(Categorical(torch.ones_like(outputs)), Normal(outputs, torch.full_like(outputs, 0.7)))
        y = episode.query.y[:, 0]
        assert found.nll[i].item() == pytest.approx(-mixture.log_prob(y).mean().item(), rel=1e-6)
        inside = ((mixture.cdf(y) >= 0.1) & (mixture.cdf(y) <= 0.9)).double().mean()
        assert found.coverage[i].item() == pytest.approx(inside.item())
    assert 0 < found.coverage.mean() < 1


def test_a_method_of_one_model_has_a_gaussian(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = MAML(MLP(1, [8], 1).double(), Regression(), 0.01, 1, "mean"), sine_episodes(2)
    found = calibration(method, episodes, 0, 2.0)
    error = (method.backbone(one(episodes, 1).query.x) - one(episodes, 1).query.y).square().mean().item()
    assert found.nll[1].item() == pytest.approx(error / 8 + math.log(2 * math.sqrt(2 * math.pi)), rel=1e-6)


class TwoGuesses(Method):
    """Predicts 0 up to x = 1; beyond, models differ until a support point lies there."""

    def __init__(self) -> None:
        super().__init__()
        self.objective = Regression()
        self.scale = nn.Parameter(torch.ones(()))

    def adapt(self, support: Examples, steps: int | None = None) -> Tensor:
        return self.scale * (support.x.max() <= 1)

    def predictions(self, state: Tensor, x: Tensor) -> Tensor:
        unsure = state * (x - 1).clamp(min=0)
        return torch.stack([unsure, 2 * unsure])

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return self.predictions(state, x).mean(0)


def test_spread_asks_first_where_the_models_differ() -> None:
    x = torch.linspace(0, 1, 40).expand(6, 40)[..., None].clone()
    x[torch.arange(6), torch.arange(6)] = 3.0  # one point of the pool, elsewhere in each task, is worth asking for
    pool = Examples(x, torch.zeros_like(x))
    start, query = (
        Examples(torch.zeros(6, 2, 1), torch.zeros(6, 2, 1)),
        Examples(torch.full((6, 3, 1), 2.0), torch.zeros(6, 3, 1)),
    )
    errors = active_learning(TwoGuesses(), start, pool, query, 1, 3, "spread")
    assert errors.shape == (6, 4)
    assert (errors[:, 0] > 2).all()
    assert (errors[:, 1:] == 0).all()
    assert (active_learning(TwoGuesses(), start, pool, query, 1, 1, "random")[:, 1] > 0).any()


def test_no_point_is_asked_for_twice(sine_episodes: Callable[..., Episode]) -> None:
    """Where the whole pool is labelled, the order does not matter."""
    method, episodes = platipus(), sine_episodes(3, shots=8, queries=4)
    support = episodes.support
    start, pool = (Examples(support.x[:, part], support.y[:, part], support.ways) for part in (slice(0, 3), slice(3, 8)))
    maml = MAML(method.backbone, Regression(), 0.01, 1, "mean")
    orders = [active_learning(maml, start, pool, episodes.query, 1, 5, choice) for choice in ("spread", "random")]
    torch.testing.assert_close(orders[0][:, -1], orders[1][:, -1])
    assert not torch.equal(orders[0][:, 1], orders[1][:, 1])


def test_wrong_arguments_are_refused(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = platipus(), sine_episodes(2)
    with pytest.raises(ValueError, match=r"noise_std is 0; it must be > 0"):
        calibration(method, episodes, 1, 0)
    with pytest.raises(ValueError, match=r"level is 1; it must lie between 0 and 1"):
        calibration(method, episodes, 1, 0.1, level=1)
    with pytest.raises(ValueError, match=r"choice is 'best'; it must be 'spread' or 'random'"):
        active_learning(method, *[episodes.support] * 3, 1, 1, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels is 6; the pool has 5 points, so it must lie between 0 and that"):
        active_learning(method, *[episodes.support] * 3, 1, 6, "spread")
