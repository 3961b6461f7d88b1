"""Reptile: the direction of its outer step, what one and two inner steps come to, and the inner optimisers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import Reptile
from mamllit.objectives import Classification, Regression

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def reptile(inner_steps: int, inner_batch: int = 100, inner_optimizer: Any = "sgd", inner_lr: float = 0.02) -> Reptile:
    net = MLP(1, [8, 8], 1, activation="tanh").double()
    return Reptile(net, Regression(), inner_lr, inner_steps, inner_batch, inner_optimizer)


def everything(episode: Episode) -> Examples:
    return episode.support.joined(episode.query)


def joint_gradient(method: Reptile, params: Any, examples: Examples) -> list[Tensor]:
    """Plain autograd of the mean loss at `params`."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    output = torch.func.functional_call(method.backbone, leaves, (examples.x,))
    return list(torch.autograd.grad(F.mse_loss(output, examples.y), list(leaves.values())))


def test_one_sgd_step_is_a_step_of_joint_training(sine_episodes: Callable[..., Episode]) -> None:
    """The outer gradient is alpha times the mean over the tasks of the gradient on all examples."""
    method, episodes = reptile(1), sine_episodes(3)
    params = dict(method.backbone.named_parameters())
    each = [joint_gradient(method, params, everything(one(episodes, i))) for i in range(3)]
    found = MetaGradient(method)(episodes).gradient.values()
    for value, parts in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(value, 0.02 * torch.stack(parts).mean(0), **CLOSE)


def test_two_sgd_steps_give_the_sum_of_both_gradients(sine_episodes: Callable[..., Episode]) -> None:
    method, episode = reptile(2), one(sine_episodes(1))
    first = joint_gradient(method, dict(method.backbone.named_parameters()), everything(episode))
    after = {n: v - 0.02 * g for (n, v), g in zip(method.backbone.named_parameters(), first, strict=True)}
    second = joint_gradient(method, after, everything(episode))
    found = torch.autograd.grad(method.meta_loss(episode)[0], list(method.parameters()))
    for value, g1, g2 in zip(found, first, second, strict=True):
        torch.testing.assert_close(value, 0.02 * (g1 + g2), **CLOSE)


@pytest.mark.parametrize("inner_optimizer", ["sgd", "adam"])
def test_sgd_at_rate_epsilon_makes_the_papers_update(inner_optimizer: str, sine_episodes: Callable[..., Episode]) -> None:
    """theta + epsilon mean(phi - theta), with phi from `adapt` task by task."""
    method, episodes = reptile(4, 3, inner_optimizer), sine_episodes(3)
    theta = {name: value.detach().clone() for name, value in method.backbone.named_parameters()}
    phi = [method.adapt(everything(one(episodes, i))) for i in range(3)]
    gradient = MetaGradient(method)(episodes).gradient
    optimizer = torch.optim.SGD(method.parameters(), lr=0.3)
    for value, g in zip(method.parameters(), gradient.values(), strict=True):
        value.grad = g
    optimizer.step()
    for name, value in method.backbone.named_parameters():
        mean = torch.stack([state[name] for state in phi]).mean(0)
        torch.testing.assert_close(value.detach(), theta[name] + 0.3 * (mean - theta[name]), **CLOSE)


def test_the_meta_loss_is_half_the_squared_distance_and_its_gradient_stops_at_phi(
    sine_episodes: Callable[..., Episode],
) -> None:
    """Central differences of the distance to a phi that stays where it was."""
    method, episode = reptile(3), one(sine_episodes(1))
    phi = torch.cat([method.adapt(everything(episode))[name].reshape(-1) for name in method.adapted])
    theta = torch.cat([value.detach().reshape(-1) for value in method.parameters()])
    loss, _ = method.meta_loss(episode)
    torch.testing.assert_close(loss.detach(), (theta - phi).square().sum() / 2)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(method.parameters()))])
    direction = torch.randn_like(theta)

    def distance(point: Tensor) -> Tensor:
        return (point - phi).square().sum() / 2

    slope = (distance(theta + 1e-5 * direction) - distance(theta - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(gradient @ direction, slope, rtol=1e-7, atol=1e-9)


def test_the_inner_adam_is_torchs_without_momentum(sine_episodes: Callable[..., Episode]) -> None:
    method, support = reptile(5, inner_optimizer="adam", inner_lr=0.01), one(sine_episodes(1)).support
    state, twin = method.adapt(support), MLP(1, [8, 8], 1, activation="tanh").double()
    twin.load_state_dict(method.backbone.state_dict())
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.0, 0.999))
    for _ in range(5):
        adam.zero_grad()
        F.mse_loss(twin(support.x), support.y).backward()
        adam.step()
    for name, value in twin.named_parameters():
        torch.testing.assert_close(state[name], value.detach(), rtol=1e-8, atol=1e-10)


def test_minibatches_go_round_through_one_order_of_the_examples(sine_episodes: Callable[..., Episode]) -> None:
    method, support = reptile(1, inner_batch=4), one(sine_episodes(1, shots=8)).support
    batches = [method.minibatch(support, torch.tensor(float(done))) for done in range(4)]
    assert all(len(batch.x) == len(batch.y) == 4 for batch in batches)
    whole = torch.cat([batches[0].x, batches[1].x])
    assert torch.equal(whole.sort(0).values, support.x.sort(0).values)
    assert not torch.equal(whole, support.x)
    assert torch.equal(torch.cat([batches[2].x, batches[3].x]), whole)
    pairs = {(float(x), float(y)) for x, y in zip(support.x, support.y, strict=True)}
    assert {(float(x), float(y)) for batch in batches for x, y in zip(batch.x, batch.y, strict=True)} == pairs


def test_test_time_adaptation_sees_the_support_only_and_meta_training_all(sine_episodes: Callable[..., Episode]) -> None:
    method, episode = reptile(2), one(sine_episodes(1))
    changed = Episode(episode.support, Examples(episode.query.x, episode.query.y + 1))
    assert method.meta_loss(changed)[0] != method.meta_loss(episode)[0]


def test_frozen_parameters_stay_in_both_loops(image_episodes: Callable[..., Episode]) -> None:
    net = Conv4(1, 4, 3, 8, "stride").double()
    method = Reptile(net, Classification(), 0.01, 2, 5, "adam", frozen=("*.beta",))
    gradient = MetaGradient(method)(image_episodes(2)).gradient
    for name, value in gradient.items():
        if name.endswith("beta"):
            assert not value.any(), name
        else:  # a norm takes the bias before it away, up to rounding, to which Adam gives back some of its size
            before_a_norm = ".convs." in name and name.endswith("bias")
            assert (value.abs().max() < 1e-8) == before_a_norm, name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_batch": 0}, r"inner_batch is 0; it must be >= 1"),
        ({"inner_optimizer": "rmsprop"}, r"inner_optimizer is 'rmsprop'; it must be 'sgd' or 'adam'"),
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reptile(**{"inner_steps": 1, **wrong})
