"""LLAMA: without its term it is MAML bit for bit; its whole gradient; its samples."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import vmap
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import LLAMA, MAML
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def smooth(labels: Any = "expected", steps: int = 2, **changes: Any) -> LLAMA:
    net = MLP(64, [6, 5], 3, activation="tanh")
    settings = {"damping": 0.1, "log_det_weight": 0.01, **changes}
    return LLAMA(net, Classification(), 0.2, steps, "mean", labels=labels, **settings).double()


@pytest.mark.parametrize("first_order", [False, True])
def test_without_the_term_it_is_maml_bit_for_bit(first_order: bool, image_episodes: Callable[..., Episode]) -> None:
    net, episodes = Conv4(1, 4, 3, 16, "max_pool").double(), image_episodes(3, side=16)
    method = LLAMA(net, Classification(), 0.1, 2, "sum_over_shots", 0.1, first_order, log_det_weight=0.0)
    ours = MetaGradient(method)(episodes)
    theirs = MetaGradient(MAML(net, Classification(), 0.1, 2, "sum_over_shots", first_order))(episodes)
    assert torch.equal(ours.loss, theirs.loss)
    assert all(torch.equal(ours.gradient[name], theirs.gradient[name]) for name in theirs.gradient)
    assert list(ours.gradient) == list(theirs.gradient)


def test_gradient_steps_are_the_mode_under_the_implied_prior() -> None:
    """Section 3: k steps of alpha on a quadratic loss end where grad L(phi) + Q^-1 (phi - theta) = 0."""
    net, x, y = nn.Linear(3, 1, bias=False).double(), torch.randn(9, 3).double(), torch.randn(9, 1).double()
    alpha, steps = 0.05, 4
    method = LLAMA(net, Regression(), alpha, steps, "mean", damping=1.0)
    phi = method.adapt(Examples(x, y))["weight"][0]
    values, vectors = torch.linalg.eigh(2 * x.T @ x / 9)
    q = vectors @ torch.diag(((1 - alpha * values) ** -steps - 1) / values) @ vectors.T
    slope = 2 * x.T @ (x @ phi - y[:, 0]) / 9
    torch.testing.assert_close(slope + torch.linalg.solve(q, phi - net.weight[0]), torch.zeros(3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("labels", ["expected", "sampled"])
def test_meta_gradient_equals_finite_differences(labels: str, image_episodes: Callable[..., Episode]) -> None:
    """Of the whole objective, the log determinant included, whose part is not small here."""
    method, episodes = smooth(labels), image_episodes(2)
    meta_gradient = MetaGradient(method)
    step, params = meta_gradient(episodes), dict(method.named_parameters())
    without = MetaGradient(MAML(method.backbone, Classification(), 0.2, 2, "mean"))(episodes)
    parts = [torch.cat([value.flatten() for value in s.gradient.values()]) for s in (step, without)]
    assert (parts[0] - parts[1]).norm() > 0.1 * parts[1].norm()
    for _ in range(4):
        direction = {name: torch.randn_like(value) for name, value in params.items()}
        slope = sum((step.gradient[f"method.{name}"] * d).sum() for name, d in direction.items())
        values = []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                for name, d in direction.items():
                    params[name].add_(sign * d)
                values.append(meta_gradient(episodes).loss)
                for name, d in direction.items():
                    params[name].sub_(sign * d)
        assert ((values[0] - values[1]) / 2e-5).item() == pytest.approx(float(slope), rel=1e-5)


def test_the_term_is_added_with_its_weight(image_episodes: Callable[..., Episode]) -> None:
    episode = one(image_episodes(1))
    method = smooth()
    loss, logs = method.meta_loss(episode)
    plain, _ = MAML(method.backbone, Classification(), 0.2, 2, "mean").meta_loss(episode)
    assert (loss - plain).item() == pytest.approx(0.01 * logs["log_det"].item(), rel=1e-9)


def test_sampled_labels_have_the_expected_fisher_on_average(image_episodes: Callable[..., Episode]) -> None:
    method, support = smooth("sampled"), one(image_episodes(1)).support
    exact = LLAMA(method.backbone, Classification(), 0.2, 2, "mean", damping=0.1)
    expected = exact.curvature(method.start(1), support.x, support)["layers.2"].outputs.detach()

    def sampled(other: Examples) -> Tensor:
        return method.curvature(method.start(1), support.x, other)["layers.2"].outputs.detach()

    found = vmap(sampled)(image_episodes(3000).support)  # each support set brings other numbers
    assert found.std(0).max() > 0.05
    torch.testing.assert_close(found.mean(0), expected, rtol=0, atol=0.01)


def test_sampled_models_spread_around_the_adapted_one(sine_episodes: Callable[..., Episode]) -> None:
    method = LLAMA(MLP(1, [8], 1), Regression(), 0.05, 2, "mean", damping=100.0, models=400).double()
    episode = one(sine_episodes(1))
    state = method.adapt(episode.support)
    outputs = method.predictions(state, episode.query.x)
    assert outputs.shape == (400, 4, 1)
    for name in method.adapted:
        samples = state[f"sampled.{name}"]
        assert samples.shape == (400, *state[name].shape)
        assert (samples.mean(0) - state[name]).abs().max() < 5 * samples.std(0).max() / 20
        assert 0 < samples.std(0).max() < 1.2 * 100**-0.5
    torch.testing.assert_close(method.predict(state, episode.query.x), outputs.mean(0), **CLOSE)


def test_a_task_gets_the_same_models_alone_and_in_a_batch(sine_episodes: Callable[..., Episode]) -> None:
    method = LLAMA(MLP(1, [5], 1), Regression(), 0.05, 1, "mean", damping=10.0, models=3).double()
    support = sine_episodes(3).support
    together = vmap(method.adapt)(support)
    for i in range(3):
        alone = method.adapt(Examples(support.x[i], support.y[i], support.ways))
        torch.testing.assert_close(alone, {name: value[i] for name, value in together.items()}, **CLOSE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
        ({"damping": 0.0}, r"damping is 0.0; it must be > 0, since a low-rank factor has no log det"),
        ({"log_det_weight": -1.0}, r"log_det_weight is -1.0; it must be >= 0, since below 0 it rewards sharp curvature"),
        ({"labels": "real"}, r"labels is 'real'; it must be 'expected' or 'sampled'"),
        ({"models": -1}, r"models is -1; it must be >= 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {"backbone": MLP(1, [4], 1), "objective": Regression(), "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean"}
    right["damping"] = 1.0
    LLAMA(**right)
    with pytest.raises(ValueError, match=message):
        LLAMA(**{**right, **wrong})
