"""Siamese networks: their loss over pairs by hand, Koch's network, and fine-tuning on the support."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mamllit.backbones import MLP, KochNet
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import Method, SiameseNetworks
from mamllit.methods.parts.features import embed
from mamllit.objectives import Classification

WAYS, D = 4, 6
ACCURACY = Classification()


def net() -> MLP:
    torch.manual_seed(1)
    return MLP(64, [8], D)


@pytest.fixture
def episode(image_episodes: Callable[..., Episode]) -> Episode:
    return item(image_episodes(1, ways=WAYS, shots=3, queries=2, dtype=torch.float32), 0)


def logits(method: Method, support: Examples, x: Tensor) -> Tensor:
    return method.predict(method.adapt(support), x).detach()


def test_siamese_verification_is_symmetric_and_knows_itself(episode: Episode) -> None:
    method = SiameseNetworks(net(), ACCURACY, D)
    a, b = embed(method.backbone, episode.support, episode.query.x)
    assert torch.equal(method.same(a, b), method.same(b, a).mT)
    torch.testing.assert_close(method.same(a, a).diagonal(), method.verify.bias.expand(len(a)))


def test_siamese_loss_counts_both_kinds_of_pairs_alike(episode: Episode) -> None:
    method = SiameseNetworks(net(), ACCURACY, D)
    support, query = embed(method.backbone, episode.support, episode.query.x)
    kinds: dict[bool, list[Tensor]] = {True: [], False: []}
    for i, y in enumerate(episode.query.y):
        for j, other in enumerate(episode.support.y):
            p = torch.sigmoid(method.verify((query[i] - support[j]).abs()))[0]
            kinds[bool(y == other)].append(-(p if y == other else 1 - p).log())
    expected = sum(torch.stack(values).mean() for values in kinds.values()) / 2
    torch.testing.assert_close(method.meta_loss(episode)[0], expected)


def test_pairs_as_drawn_count_alike_whatever_their_kind() -> None:
    method = SiameseNetworks(nn.Identity(), ACCURACY, 2, "verification", "as_drawn")
    with torch.no_grad():
        method.verify.weight.copy_(torch.tensor([[-1.0, -2.0]]))
        method.verify.bias.fill_(1.0)
    support = Examples(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), 2)
    for x, y, p, right in (([1.0, 0.5], 1, 1 / (1 + math.e), 1.0), ([0.0, 0.5], 0, 0.5, 0.5), ([0.0, 0.0], 1, None, 0.0)):
        same = math.e / (1 + math.e) if p is None else p
        loss, logs = method.meta_loss(Episode(support, Examples(torch.tensor([x]), torch.tensor([y]), 2)))
        assert math.isclose(float(loss.detach()), -math.log(1 - same if y else same), rel_tol=1e-6)
        assert float(logs["accuracy"]) == right


@pytest.mark.parametrize(
    ("side", "kernels", "channels"),
    [(35, (4, 3, 2, 2), (8, 16, 16, 32)), pytest.param(105, (10, 7, 4, 4), (4, 8, 8, 16), marks=pytest.mark.long)],
)
def test_kochs_network_can_fit_sixty_four_fixed_pairs(side: int, kernels: tuple[int, ...], channels: tuple[int, ...]) -> None:
    x, y = (torch.rand(64, 2, 1, 1, side, side) < 0.1).float(), torch.arange(64) % 2
    x[::2, 1] = x[::2, 0] * (torch.rand(32, 1, 1, side, side) < 0.9)  # of the same kind: a tenth of the ink is gone
    pairs = Episode(Examples(x[:, 0], torch.zeros(64, 1, dtype=torch.long), 2), Examples(x[:, 1], y[:, None], 2))
    net = KochNet(1, side, channels, kernels, 128, "plain")
    method = SiameseNetworks(net, ACCURACY, 128, "verification", "as_drawn")
    optimizer = torch.optim.Adam(method.parameters(), lr=0.005)
    for _ in range(200):
        optimizer.zero_grad()
        step = MetaGradient(method)(pairs)
        for name, value in method.named_parameters():
            value.grad = step.gradient[f"method.{name}"]
        optimizer.step()
        if float(step.loss) < 0.05:
            break
    assert float(step.loss) < 0.05
    assert float(step.logs["accuracy"]) == 1.0
    a, b = (net(part.x[:, 0]).detach() for part in pairs)
    assert torch.equal(method.same(a, b), method.same(b, a).mT)  # p(x, x') = p(x', x)
    torch.testing.assert_close(method.same(a, a).diagonal(), method.verify.bias.expand(64))  # p(x, x) = sigmoid(b)


def test_siamese_networks_can_fit_pairs() -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 64)
    support, query = Examples(images, torch.arange(8), 8), Examples(images + 0.05 * torch.rand(8, 64), torch.arange(8), 8)
    method = SiameseNetworks(MLP(64, [64], 32), ACCURACY, 32)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss, logs = method.meta_loss(Episode(support, query))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05  # 64 pairs
    assert float(logs["accuracy"]) == 1.0


def test_siamese_fine_tuning_begins_as_it_was_trained_and_lowers_the_loss_on_the_support(episode: Episode) -> None:
    plain, tuned = SiameseNetworks(net(), ACCURACY, D), SiameseNetworks(net(), ACCURACY, D, inner_steps=5, inner_lr=0.5)
    tuned.load_state_dict(plain.state_dict())
    states, x = tuned.trajectory(episode.support, 5), episode.query.x
    expected = plain.predict(plain.adapt(episode.support, 5), x)  # without inner_steps, no number of steps does anything
    for state in (states[0], tuned.adapt(episode.support, 0)):
        assert torch.equal(tuned.predict(state, x), expected)
    losses = [float(tuned.support_loss(state).detach()) for state in states]
    assert losses == sorted(losses, reverse=True)
    assert losses[5] < losses[0]
    support, (_, weights) = episode.support, states[1]
    features = plain.backbone(support.x)
    kinds: dict[bool, list[Tensor]] = {True: [], False: []}
    for i, j in itertools.combinations(range(len(support.y)), 2):
        logit, same = plain.verify((features[i] - features[j]).abs())[0], bool(support.y[i] == support.y[j])
        kinds[same].append(-nn.functional.logsigmoid(logit if same else -logit))
    loss = sum(torch.stack(values).mean() for values in kinds.values()) / 2
    assert isinstance(loss, Tensor)
    torch.testing.assert_close(loss.detach(), torch.tensor(losses[0]))
    slopes = torch.autograd.grad(loss, list(plain.backbone.parameters()))
    for (name, value), slope in zip(plain.backbone.named_parameters(), slopes, strict=True):
        torch.testing.assert_close(weights[name], value - 0.5 * slope)


def test_siamese_fine_tuning_takes_one_shot_and_heeds_no_name_of_a_class(image_episodes: Callable[..., Episode]) -> None:
    episode = item(image_episodes(1, ways=WAYS, shots=1, queries=2, dtype=torch.float32), 0)
    method = SiameseNetworks(net(), ACCURACY, D, inner_steps=3, inner_lr=0.5)
    states = method.trajectory(episode.support, 3)
    assert float(method.support_loss(states[3]).detach()) < float(method.support_loss(states[0]).detach())
    other = torch.tensor([2, 0, 3, 1])  # the new name of each class
    renamed = Examples(episode.support.x, other[episode.support.y], WAYS)
    assert torch.equal(logits(method, renamed, episode.query.x)[:, other], logits(method, episode.support, episode.query.x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SiameseNetworks(net(), ACCURACY, D, "vote"), "classify is 'vote'; it must be 'cosine' or 'verification'"),
        (lambda: SiameseNetworks(net(), ACCURACY, D, pairs="odd"), "pairs is 'odd'; it must be 'balanced' or 'as_drawn'"),
        (lambda: SiameseNetworks(net(), ACCURACY, D, inner_steps=-1), "inner_steps is -1; it must be >= 0"),
        (lambda: SiameseNetworks(net(), ACCURACY, D, inner_steps=1, inner_lr=-1.0), "inner_lr is -1.0; it must be >= 0"),
        (lambda: SiameseNetworks(nn.BatchNorm1d(D), ACCURACY, D, inner_steps=1), "the module has running buffers"),
        (lambda: SiameseNetworks(nn.Identity(), ACCURACY, D, inner_steps=1), "no parameter is left to adapt"),
    ],
)
def test_settings_out_of_bounds_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
