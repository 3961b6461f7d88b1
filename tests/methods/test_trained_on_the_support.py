"""Fine-tuning and the linear probe: what trains on the support of an episode, against plain loops."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item
from mamllit.engine.evaluation import evaluate
from mamllit.methods import FineTuning, LinearProbe, Method, PrototypicalNetworks
from mamllit.methods.parts.features import class_means
from mamllit.objectives import Classification

WAYS, D = 4, 6
ACCURACY = Classification()


def net() -> MLP:
    torch.manual_seed(1)
    return MLP(64, [8], D)


@pytest.fixture
def episode(image_episodes: Callable[..., Episode]) -> Episode:
    return item(image_episodes(1, ways=WAYS, shots=3, queries=2, dtype=torch.float32), 0)


def test_fine_tuning_is_gradient_descent_with_a_rate_that_decays(episode: Episode) -> None:
    torch.manual_seed(0)
    method = FineTuning(MLP(64, [8], WAYS), ACCURACY, inner_lr=0.5, inner_steps=4, decay=0.3)
    adapted, plain = method.adapt(episode.support), MLP(64, [8], WAYS)
    plain.load_state_dict(method.backbone.state_dict())
    for t in range(4):
        plain.zero_grad()
        nn.functional.cross_entropy(plain(episode.support.x), episode.support.y).backward()
        with torch.no_grad():
            for value in plain.parameters():
                value -= 0.5 / (1 + t * 0.3) * value.grad
    for name, value in plain.named_parameters():
        torch.testing.assert_close(adapted[name], value, msg=name)


def test_fine_tuning_fits_the_support_and_at_rate_zero_stays_at_chance(image_episodes: Callable[..., Episode]) -> None:
    episodes = image_episodes(40, ways=5, shots=1, queries=5, dtype=torch.float32)
    torch.manual_seed(0)
    still = evaluate(FineTuning(MLP(64, [8], 5), ACCURACY, 0.0), episodes, 15)
    assert torch.equal(still[:, 0], still[:, -1])
    assert abs(float(still[:, -1].mean()) - 0.2) < 0.03
    moving = FineTuning(MLP(64, [64], 5), ACCURACY, 0.5)
    own = item(episodes, 0).support
    assert float(ACCURACY.metric(moving.predict(moving.adapt(own), own.x).detach(), own.y)) == 1.0


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_probe_trains_the_head_alone(head: Any, episode: Episode) -> None:
    method = LinearProbe(net(), ACCURACY, 0.5, 3, head, weight_decay=0.1)
    features = method.backbone(episode.support.x).detach()
    means = class_means(features, episode.support)
    weight = (means if head == "cosine" else torch.zeros_like(means)).requires_grad_()
    for _ in range(3):
        scores = 10 * torch.cosine_similarity(features[:, None], weight, -1) if head == "cosine" else features @ weight.mT
        loss = nn.functional.cross_entropy(scores, episode.support.y) + 0.05 * weight.square().sum()
        (slope,) = torch.autograd.grad(loss, weight)
        weight = (weight - 0.5 * slope).detach().requires_grad_()
    torch.testing.assert_close(method.adapt(episode.support), weight)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_probe_reports_every_step_from_one_pass_over_the_query(head: Any, episode: Episode) -> None:
    backbone, passes = net(), []
    method = LinearProbe(backbone, ACCURACY, 0.5, 3, head)
    (expected,) = Method.curve(method, episode, 3)
    backbone.register_forward_hook(lambda module, x, y: passes.append(len(x[0])))
    (found,) = method.curve(episode, 3)
    torch.testing.assert_close(found, expected)
    assert passes == [len(episode.support.y), len(episode.query.y)]
    batch = Episode(*(Examples(part.x[None], part.y[None], part.ways) for part in episode))
    for both in (evaluate(method, batch, 3), evaluate(method, batch, 3, inductive=True)):  # no norm: the same
        torch.testing.assert_close(both, expected[None])


def test_a_cosine_probe_begins_as_the_nearest_mean(episode: Episode) -> None:
    probe, mean = LinearProbe(net(), ACCURACY, 0.5, 3, "cosine"), PrototypicalNetworks(net(), ACCURACY, "cosine", 10.0)
    begun = probe.predict(probe.adapt(episode.support, 0), episode.query.x)
    torch.testing.assert_close(begun, mean.predict(mean.adapt(episode.support), episode.query.x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FineTuning(net(), ACCURACY, 0.1, decay=-1), "decay is -1; it must be >= 0"),
        (lambda: LinearProbe(net(), ACCURACY, 0.1, head="round"), "head is 'round'; it must be 'linear' or 'cosine'"),
        (lambda: LinearProbe(net(), ACCURACY, 0.1, weight_decay=-1), "weight_decay is -1; it must be >= 0"),
        (lambda: LinearProbe(net(), ACCURACY, 0.1, scale=0), "scale is 0; it must be > 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
