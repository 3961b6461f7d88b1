"""Bayesian MAML: one particle is MAML, the leader is a constant, and the meta-gradients of both losses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import BMAML, MAML
from mamllit.methods.parts import svgd
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def smooth(loss: Any, particles: int = 4, steps: int = 2, first_order: bool = False, likelihood: float = 3.0) -> BMAML:
    net = MLP(1, [6, 6], 1, activation="tanh")
    return BMAML(
        net,
        Regression(),
        0.1,
        steps,
        "mean",
        first_order,
        particles=particles,
        loss=loss,
        likelihood=likelihood,
        leader_steps=2,
    ).double()


# ---- the identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_one_particle_is_maml(steps: int, first_order: bool, image_episodes: Callable[..., Episode]) -> None:
    net, episodes = Conv4(1, 4, 3, 16, "stride").double(), image_episodes(3, side=16)
    method = BMAML(
        net, Classification(), 0.1, steps, "sum_over_shots", first_order, particles=1, loss="likelihood", likelihood=5
    )
    maml = MAML(net, Classification(), 0.1, steps, "sum_over_shots", first_order)
    ours, theirs = MetaGradient(method)(episodes), MetaGradient(maml)(episodes)
    torch.testing.assert_close((ours.loss, ours.logs, ours.gradient), (theirs.loss, theirs.logs, theirs.gradient), **CLOSE)


def test_one_particles_chaser_has_nothing_to_chase_where_the_gradient_is_zero() -> None:
    method = smooth("chaser", particles=1)
    x = torch.rand(5, 1, dtype=torch.float64)
    part = Examples(x, method.backbone(x).detach())
    assert abs(method.meta_loss(Episode(part, part))[0]) < 1e-30  # not 0 on every CPU
    with_others = smooth("chaser", particles=3)
    assert with_others.meta_loss(Episode(part, part))[0] > 1e-8


def test_the_likelihood_is_that_of_the_mixture(sine_episodes: Callable[..., Episode]) -> None:
    method, episode = smooth("likelihood"), one(sine_episodes(1))
    state = method.adapt(episode.support)
    errors = [(output - episode.query.y).square().mean() for output in method.predictions(state, episode.query.x)]
    mixture = sum(math.exp(-3 * error.item()) for error in errors) / 4
    assert method.meta_loss(episode)[0].item() == pytest.approx(-math.log(mixture) / 3, rel=1e-9)


def test_the_chaser_loss_written_out_anew(sine_episodes: Callable[..., Episode]) -> None:
    method, episode = smooth("chaser"), one(sine_episodes(1))
    both = episode.support.joined(episode.query)
    state = method.adapt(episode.support)
    leader = method.step(method.step(state, both), both)
    distance = sum((state[name] - leader[name]).square().sum() for name in state)
    assert method.meta_loss(episode)[0].item() == pytest.approx(float(distance), rel=1e-9)


def test_the_leader_is_a_constant(sine_episodes: Callable[..., Episode]) -> None:
    method, episode = smooth("chaser"), one(sine_episodes(1))
    state = method.adapt(episode.support)
    leader = method.leader(state, episode)
    assert all(value.requires_grad for value in state.values())
    assert not any(value.requires_grad for value in leader.values())
    params = list(method.parameters())
    fixed = {name: value.clone() for name, value in leader.items()}
    expected = torch.autograd.grad(method.chase(state, fixed), params)
    torch.testing.assert_close(torch.autograd.grad(method.meta_loss(episode)[0], params), expected, **CLOSE)


# ---- the meta-gradient ---------------------------------------------------------------------------------------------


def check(method: BMAML, loss: Callable[[], torch.Tensor], gradient: dict[str, torch.Tensor], slack: float) -> None:
    params = dict(method.named_parameters())
    for _ in range(4):
        direction = {name: torch.randn_like(value) for name, value in params.items()}
        slope = sum((gradient[f"method.{name}"] * d).sum() for name, d in direction.items())
        values = []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                for name, d in direction.items():
                    params[name].add_(sign * d)
            values.append(loss())
            with torch.no_grad():
                for name, d in direction.items():
                    params[name].sub_(sign * d)
        assert ((values[0] - values[1]) / 2e-5).item() == pytest.approx(float(slope), rel=slack)


def test_likelihood_meta_gradient_equals_finite_differences(
    sine_episodes: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two inner steps; the bandwidth, which counts as a constant, is held at a number."""

    def fixed(particles: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        flat = torch.cat([value.flatten(1) for value in particles.values()], 1)
        bandwidth = torch.tensor(9.0, dtype=torch.float64)
        return torch.exp(-(flat[:, None] - flat[None]).square().sum(-1) / bandwidth), bandwidth

    monkeypatch.setattr(svgd, "kernel", fixed)
    method, episodes = smooth("likelihood"), sine_episodes(2)
    meta_gradient = MetaGradient(method)
    check(method, lambda: meta_gradient(episodes).loss, meta_gradient(episodes).gradient, 1e-5)


def test_chaser_meta_gradient_equals_finite_differences_with_the_leader_held(
    sine_episodes: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = svgd.kernel
    episodes = sine_episodes(2)
    method = smooth("chaser")
    bandwidth = original(method.start(1))[1].detach()
    monkeypatch.setattr(
        svgd, "kernel", lambda p: (torch.exp(-original(p)[0].log().neg() * original(p)[1] / bandwidth), bandwidth)
    )
    leaders = [method.leader(method.adapt(one(episodes, i).support), one(episodes, i)) for i in range(2)]

    def held() -> torch.Tensor:
        each = [method.chase(method.adapt(one(episodes, i).support), leaders[i]) for i in range(2)]
        return torch.stack(each).mean()

    check(method, held, MetaGradient(method)(episodes).gradient, 1e-5)


@pytest.mark.parametrize("loss", ["chaser", "likelihood"])
def test_every_particle_is_meta_learned(loss: str, sine_episodes: Callable[..., Episode]) -> None:
    method = smooth(loss)
    gradient = MetaGradient(method)(sine_episodes(3)).gradient
    assert len(gradient) == 12
    for name, value in gradient.items():
        particles = value if "others" in name else value[None]
        assert all(particle.abs().max() > 1e-9 for particle in particles)


# ---- the particles -------------------------------------------------------------------------------------------------


def test_particles_begin_as_draws_of_the_same_initialisation() -> None:
    method = BMAML(MLP(1, [40, 40], 1), Regression(), 0.1, 1, "mean", particles=5)
    state = method.start(1)
    for name, value in method.backbone.named_parameters():
        assert state[name].shape == (5, *value.shape)
        assert torch.equal(state[name][0], value)
        for particle in state[name][1:]:
            assert torch.equal(particle.flatten().sort().values, value.flatten().sort().values)
    weight = state["layers.1.weight"].flatten(1)
    assert (torch.corrcoef(weight) - torch.eye(5)).abs().max() < 0.15


def test_shared_parameters_begin_in_common_and_exist_once(image_episodes: Callable[..., Episode]) -> None:
    net = Conv4(1, 4, 3, 16, "stride")
    method = BMAML(net, Classification(), 0.1, 1, "mean", particles=3, shared=["convs.*"], likelihood=2.0)
    numbers = sum(value.numel() for value in method.parameters())
    assert numbers == sum(value.numel() for value in net.parameters()) + 2 * sum(v.numel() for v in net.head.parameters())
    assert torch.equal(method.start(1)["convs.1.weight"][0], method.start(1)["convs.1.weight"][2])
    assert not torch.equal(method.start(1)["head.weight"][0], method.start(1)["head.weight"][2])
    state = method.adapt(one(image_episodes(1, side=16, dtype=torch.float32)).support)
    assert not torch.equal(state["convs.1.weight"][0], state["convs.1.weight"][2])


def test_a_prediction_is_the_mean_over_the_particles(sine_episodes: Callable[..., Episode]) -> None:
    method, episode = smooth("chaser"), one(sine_episodes(1))
    state = method.adapt(episode.support)
    outputs = method.predictions(state, episode.query.x)
    assert outputs.shape == (4, 4, 1)
    torch.testing.assert_close(method.predict(state, episode.query.x), outputs.mean(0), **CLOSE)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
        ({"particles": 0}, r"particles is 0; it must be >= 1"),
        ({"loss": "chase"}, r"loss is 'chase'; it must be 'chaser' or 'likelihood'"),
        ({"leader_steps": 0}, r"leader_steps is 0; it must be >= 1, since the chaser needs a leader"),
        ({"likelihood": 0.0}, r"likelihood is 0.0; it must be > 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {"backbone": MLP(1, [4], 1), "objective": Regression(), "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean"}
    BMAML(**right)
    with pytest.raises(ValueError, match=message):
        BMAML(**{**right, **wrong})
