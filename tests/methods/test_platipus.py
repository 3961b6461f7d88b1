"""PLATIPUS: what ties it to MAML, its divergence, its meta-gradient, and what it may look at."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import vmap
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML, PLATIPUS
from mamllit.methods.platipus import gaussian_kl
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def smooth(steps: int = 2, first_order: bool = False, **changes: float) -> PLATIPUS:
    net = MLP(1, [6, 6], 1, activation="tanh")
    settings = {"kl_weight": 0.01, "gamma": 0.05, "log_std": -2.0, **changes}
    return PLATIPUS(net, Regression(), 0.05, steps, "mean", first_order=first_order, train_models=3, **settings).double()  # type: ignore[arg-type]


# ---- the identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
def test_without_variance_and_gamma_it_is_maml(first_order: bool, sine_episodes: Callable[..., Episode]) -> None:
    """sigma^2 = v_q -> 0 and gamma = 0: the KL is exactly 0, and loss and gradient are MAML's."""
    method, episodes = smooth(first_order=first_order, log_std=-60.0, gamma=0.0), sine_episodes(3)
    maml = MAML(method.backbone, Regression(), 0.05, 2, "mean", first_order)
    ours, theirs = MetaGradient(method)(episodes), MetaGradient(maml)(episodes)
    torch.testing.assert_close((ours.loss, ours.logs["mse"]), (theirs.loss, theirs.logs["mse"]), **CLOSE)
    assert ours.logs["kl_per_parameter"] == 0
    for name, expected in theirs.gradient.items():
        torch.testing.assert_close(ours.gradient[name], expected, **CLOSE)


def test_without_variance_and_gamma_it_adapts_as_maml(image_episodes: Callable[..., Episode]) -> None:
    net, episode = Conv4(1, 4, 3, 16, "stride").double(), one(image_episodes(1, side=16))
    method = PLATIPUS(net, Classification(), 0.1, 2, "sum_over_shots", 0.1, gamma=0.0, log_std=-60.0).double()
    maml = MAML(net, Classification(), 0.1, 2, "sum_over_shots")
    expected = maml.predict(maml.adapt(episode.support), episode.query.x).softmax(-1)
    torch.testing.assert_close(method.predict(method.adapt(episode.support), episode.query.x).softmax(-1), expected, **CLOSE)


def test_the_divergence_is_that_of_torch_and_zero_for_equal_gaussians() -> None:
    a, b, q, p = (torch.randn(5, 3, dtype=torch.float64) for _ in range(4))
    expected = kl_divergence(Normal(a, q.exp()), Normal(b, p.exp())).sum()
    torch.testing.assert_close(gaussian_kl(a - b, q, p), expected, **CLOSE)
    assert gaussian_kl(torch.zeros_like(a), q, q) == 0


def test_the_meta_loss_written_out_anew(sine_episodes: Callable[..., Episode]) -> None:
    """One inner step, plain autograd, one model after another; the sampled models are taken from the method."""
    method, episode = smooth(steps=1), one(sine_episodes(1))
    mean = {name: value.detach().requires_grad_() for name, value in method.mean().items()}

    def loss(params: dict[str, Tensor], part: Examples) -> Tensor:
        return (functional_call(method.backbone, params, (part.x,)) - part.y).square().mean()

    def slope(params: dict[str, Tensor], part: Examples) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        return dict(zip(params, torch.autograd.grad(loss(leaves, part), list(leaves.values())), strict=True))

    q, p = slope(mean, episode.query), slope(mean, episode.support)
    noise = {k: v - mean[k] for k, v in method._sampled(mean, method.log_q, episode.support, 1, 3).items()}
    losses = []
    for m in range(3):
        theta = {k: mean[k] - 0.05 * q[k] + noise[k][m] for k in mean}
        step = slope(theta, episode.support)
        losses.append(loss({k: theta[k] - 0.05 * step[k] for k in theta}, episode.query))
    kl = sum((0.05 * (p[k] - q[k])).square().sum() / torch.tensor(-2.0).exp().item() ** 2 / 2 for k in mean)
    expected = torch.stack(losses).mean() + 0.01 * kl
    found, logs = method.meta_loss(episode)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert float(logs["log_sigma"]) == float(logs["log_q"]) == -2.0


# ---- the meta-gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradient_equals_finite_differences(steps: int, sine_episodes: Callable[..., Episode]) -> None:
    """With respect to all five parameter sets at once, and to each alone."""
    method, episodes = smooth(steps), sine_episodes(2)
    meta_gradient = MetaGradient(method)
    gradient = meta_gradient(episodes).gradient
    params = dict(method.named_parameters())
    for part in ("", "backbone", "log_sigma", "log_q", "gamma_p", "gamma_q"):
        direction = {name: torch.randn_like(value) for name, value in params.items() if name.startswith(part)}
        slope = sum((gradient[f"method.{name}"] * d).sum() for name, d in direction.items())
        assert abs(slope) > 1e-6
        values = []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                for name, d in direction.items():
                    params[name].add_(sign * d)
                values.append(meta_gradient(episodes).loss)
                for name, d in direction.items():
                    params[name].sub_(sign * d)
        assert ((values[0] - values[1]) / 2e-5).item() == pytest.approx(float(slope), rel=1e-5, abs=1e-9)


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_models_are_sampled_around_the_moved_mean_with_their_variance(sine_episodes: Callable[..., Episode]) -> None:
    method = PLATIPUS(MLP(1, [6], 1), Regression(), 0.05, 1, "mean", 0.1, test_models=4000, log_std=-1.0, gamma=0.0).double()
    state = method.adapt(one(sine_episodes(1)).support, 0)
    for name, value in method.mean().items():
        assert state[name].shape == (4000, *value.shape)
        assert (state[name].mean(0) - value).abs().max() < 0.03
        torch.testing.assert_close(
            state[name].std(0), torch.full_like(value, torch.tensor(-1.0).exp().item()), rtol=0.1, atol=0
        )


def test_a_task_gets_the_same_models_alone_and_in_a_batch(sine_episodes: Callable[..., Episode]) -> None:
    method, support = smooth(), sine_episodes(4).support
    together = vmap(method.adapt)(support)
    assert not torch.equal(together["layers.0.weight"][0], together["layers.0.weight"][1])
    for i in range(4):
        alone = method.adapt(Examples(support.x[i], support.y[i], support.ways))
        torch.testing.assert_close(alone, {name: value[i] for name, value in together.items()}, **CLOSE)


def test_predictions_are_averaged_as_probabilities(image_episodes: Callable[..., Episode]) -> None:
    method = PLATIPUS(MLP(64, [5], 3), Classification(), 0.1, 1, "mean", 0.1, log_std=0.0, test_models=6).double()
    episode = one(image_episodes(1))
    state = method.adapt(episode.support)
    outputs = method.predictions(state, episode.query.x)
    assert outputs.shape == (6, 9, 3)
    assert outputs.std(0).max() > 0.1
    torch.testing.assert_close(method.predict(state, episode.query.x).softmax(-1), outputs.softmax(-1).mean(0), **CLOSE)


def test_the_spread_tells_a_collapse() -> None:
    method = smooth()
    assert {name: value.item() for name, value in method.spread().items()} == {"sigma": 1.0, "q": 1.0}
    with torch.no_grad():
        for value in method.log_sigma:
            value.sub_(10)
    assert method.spread()["sigma"].item() == pytest.approx(4.54e-5, rel=1e-3)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
        ({"kl_weight": -1.0}, r"kl_weight is -1.0; it must be >= 0"),
        ({"train_models": 0}, r"train_models is 0 and test_models 10; both must be >= 1"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {"backbone": MLP(1, [4], 1), "objective": Regression(), "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean"}
    right["kl_weight"] = 0.1
    PLATIPUS(**right)
    with pytest.raises(ValueError, match=message):
        PLATIPUS(**{**right, **wrong})


def test_a_negative_number_of_steps_is_refused(sine_episodes: Callable[..., Episode]) -> None:
    with pytest.raises(ValueError, match=r"steps is -1; it must be >= 0"):
        smooth().adapt(one(sine_episodes(1)).support, -1)
