"""Methods that compare features: numbers by hand, and what must not change a prediction."""

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
from mamllit.engine.evaluation import evaluate
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import (
    FineTuning,
    LinearProbe,
    MatchingNetworks,
    Method,
    NearestNeighbour,
    PrototypicalNetworks,
    SiameseNetworks,
)
from mamllit.methods.matching import LSTMCell
from mamllit.methods.parts.features import class_means, embed, square_distances
from mamllit.objectives import Classification

WAYS, D = 4, 6
ACCURACY = Classification()


class Scaled(nn.Module):
    """Features times a number."""

    def __init__(self, backbone: nn.Module, scale: float) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.backbone(x)


def net() -> MLP:
    torch.manual_seed(1)
    return MLP(64, [8], D)


@pytest.fixture
def episode(image_episodes: Callable[..., Episode]) -> Episode:
    return item(image_episodes(1, ways=WAYS, shots=3, queries=2, dtype=torch.float32), 0)


METRIC: dict[str, Callable[[nn.Module], Method]] = {
    "prototypical": lambda f: PrototypicalNetworks(f, ACCURACY),
    "prototypical cosine": lambda f: PrototypicalNetworks(f, ACCURACY, "cosine", 10.0),
    "nearest neighbour": lambda f: NearestNeighbour(f, ACCURACY),
    "matching": lambda f: MatchingNetworks(f, ACCURACY),
    "matching summed": lambda f: MatchingNetworks(f, ACCURACY, "summed_cosine"),
    "siamese": lambda f: SiameseNetworks(f, ACCURACY, D),
    "verification": lambda f: SiameseNetworks(f, ACCURACY, D, "verification"),
}
every_metric = pytest.mark.parametrize("name", list(METRIC))


def logits(method: Method, support: Examples, x: Tensor) -> Tensor:
    return method.predict(method.adapt(support), x).detach()


def permuted(support: Examples, order: Tensor) -> Examples:
    return Examples(support.x[order], support.y[order], support.ways)


# ---- what holds for all ----------------------------------------------------------------------------------------------


@every_metric
def test_the_order_of_the_support_does_not_matter(name: str, episode: Episode) -> None:
    torch.manual_seed(0)
    method = METRIC[name](net())
    other = permuted(episode.support, torch.randperm(len(episode.support.y)))
    torch.testing.assert_close(logits(method, other, episode.query.x), logits(method, episode.support, episode.query.x))


@every_metric
def test_a_query_is_judged_by_itself(name: str, episode: Episode) -> None:
    method = METRIC[name](net())
    whole = logits(method, episode.support, episode.query.x)
    torch.testing.assert_close(logits(method, episode.support, episode.query.x[2:3]), whole[2:3])


@pytest.mark.parametrize("name", [name for name in METRIC if name not in ("matching", "matching summed")])
def test_the_support_twice_is_the_support(name: str, episode: Episode) -> None:
    method = METRIC[name](net())
    twice = episode.support.joined(episode.support)
    torch.testing.assert_close(logits(method, twice, episode.query.x), logits(method, episode.support, episode.query.x))


@pytest.mark.parametrize("name", ["prototypical cosine", "nearest neighbour", "matching", "matching summed", "siamese"])
def test_a_cosine_does_not_heed_the_scale_of_the_features(name: str, episode: Episode) -> None:
    plain, scaled = METRIC[name](net()), METRIC[name](Scaled(net(), 10.0))
    torch.testing.assert_close(
        logits(scaled, episode.support, episode.query.x), logits(plain, episode.support, episode.query.x)
    )


CONSTANT: dict[str, Callable[[nn.Module], Method]] = {
    **METRIC,
    "linear probe": lambda f: LinearProbe(f, ACCURACY, 0.1, 2),
    "cosine probe": lambda f: LinearProbe(f, ACCURACY, 0.0, 2, "cosine"),
    "context": lambda f: MatchingNetworks(f, ACCURACY, context_steps=2, features=D),
    "fine-tuned siamese": lambda f: SiameseNetworks(f, ACCURACY, D, inner_steps=2, inner_lr=1.0),
}


@pytest.mark.parametrize("name", list(CONSTANT))
def test_a_network_that_gives_constants_scores_one_in_n(name: str, image_episodes: Callable[..., Episode]) -> None:
    """The trap of others: the true class first, a tie, and 100%."""
    network = net()
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
        network.layers[-1].bias.fill_(1.0)
    episodes = image_episodes(3, ways=WAYS, shots=2, queries=3, dtype=torch.float32)
    found = evaluate(CONSTANT[name](network), episodes, 0)
    # full context tells the places of the support apart, and so its classes: the same answer for every query
    torch.testing.assert_close(found, torch.full_like(found, 1 / WAYS))


def test_a_tie_is_shared_and_nan_is_wrong() -> None:
    output = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 3.0, 3.0], [0.0, 1.0, 5.0], [float("nan")] * 3])
    y = torch.tensor([0, 0, 2, 2, 0])
    assert math.isclose(float(ACCURACY.metric(output, y)), (1 / 2 + 0 + 1 / 3 + 1 + 0) / 5, rel_tol=1e-6)


# ---- prototypical networks ---------------------------------------------------------------------------------------------


def test_prototypical_logits_are_linear_in_the_query(episode: Episode) -> None:
    """Snell et al. 2017, equation 8: 2 c_k . z - |c_k|^2, and a term that is the same for all classes."""
    method = PrototypicalNetworks(net(), ACCURACY)
    support, z = embed(method.backbone, episode.support, episode.query.x)
    c = torch.stack([support[episode.support.y == k].mean(0) for k in range(WAYS)])
    torch.testing.assert_close(class_means(support, episode.support), c)
    expected = 2 * z @ c.mT - c.square().sum(-1) - z.square().sum(-1, keepdim=True)
    torch.testing.assert_close(method.predict(episode.support, episode.query.x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(square_distances(z, c), torch.cdist(z, c).square(), rtol=1e-4, atol=1e-4)


# ---- nearest neighbour -------------------------------------------------------------------------------------------------


def test_nearest_neighbour_is_the_single_nearest_image() -> None:
    method = NearestNeighbour(nn.Identity(), ACCURACY)
    support = Examples(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.8, 0.3]]), torch.tensor([0, 0, 1, 1]), 2)
    query = torch.tensor([[10.0, 0.1], [5.0, 2.0]])
    expected = [max(range(4), key=lambda i: float(torch.cosine_similarity(q, support.x[i], 0))) for q in query]
    assert logits(method, support, query).argmax(-1).tolist() == [int(support.y[i]) for i in expected] == [0, 1]


# ---- matching networks -------------------------------------------------------------------------------------------------


def test_attention_is_a_distribution_and_its_loss_has_a_floor(episode: Episode) -> None:
    method = MatchingNetworks(net(), ACCURACY)
    chance = logits(method, episode.support, episode.query.x).exp()
    torch.testing.assert_close(chance.sum(-1), torch.ones(len(chance)))
    one = Examples(torch.eye(5), torch.arange(5), 5)
    perfect = MatchingNetworks(nn.Identity(), ACCURACY)
    loss = ACCURACY.loss(logits(perfect, one, one.x), one.y)
    assert math.isclose(float(loss), -math.log(math.e / (math.e + 4)), rel_tol=1e-6)  # 0.905: no features do better
    sharp = MatchingNetworks(nn.Identity(), ACCURACY, scale=1000.0)
    assert logits(sharp, one, one.x).isfinite().all()


def test_attention_and_summed_cosines_by_hand() -> None:
    support = Examples(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 1, 1]), 2)
    x, e = torch.tensor([[1.0, 0.0]]), math.e
    whole = 2 * e + 1 + 1 / e
    attention = logits(MatchingNetworks(nn.Identity(), ACCURACY), support, x).exp()
    torch.testing.assert_close(attention, torch.tensor([[(e + 1) / whole, (e + 1 / e) / whole]]))
    summed = logits(MatchingNetworks(nn.Identity(), ACCURACY, "summed_cosine"), support, x)
    torch.testing.assert_close(summed, torch.tensor([[1.0, 0.0]]))


def test_full_context_heeds_the_order_of_the_support(episode: Episode) -> None:
    torch.manual_seed(0)
    method = MatchingNetworks(net(), ACCURACY, context_steps=3, features=D)
    other = permuted(episode.support, torch.arange(len(episode.support.y)).flip(0))
    difference = logits(method, other, episode.query.x) - logits(method, episode.support, episode.query.x)
    assert difference.abs().max() > 1e-4


def test_the_cell_is_pytorchs() -> None:
    torch.manual_seed(0)
    own, x, state = LSTMCell(3, 5), torch.randn(4, 3), (torch.randn(4, 5), torch.randn(4, 5))
    torch.testing.assert_close(own(x, state), nn.LSTMCell.forward(own, x, state))


# ---- Siamese networks --------------------------------------------------------------------------------------------------


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


# ---- a head, or all, trained on the support ----------------------------------------------------------------------------


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
    assert float(ACCURACY.metric(logits(moving, own, own.x), own.y)) == 1.0


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


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrototypicalNetworks(net(), ACCURACY, "l1"), "distance is 'l1'; it must be 'squared_euclidean' or 'cosine'"),
        (lambda: PrototypicalNetworks(net(), ACCURACY, scale=0), "scale is 0; it must be > 0"),
        (lambda: MatchingNetworks(net(), ACCURACY, "dot"), "score is 'dot'; it must be 'attention' or 'summed_cosine'"),
        (lambda: MatchingNetworks(net(), ACCURACY, scale=-1), "scale is -1; it must be > 0"),
        (lambda: MatchingNetworks(net(), ACCURACY, context_steps=-1), "context_steps is -1; it must be >= 0"),
        (
            lambda: MatchingNetworks(net(), ACCURACY, context_steps=1),
            "context_steps is 1; full context embeddings need",
        ),
        (lambda: SiameseNetworks(net(), ACCURACY, D, "vote"), "classify is 'vote'; it must be 'cosine' or 'verification'"),
        (lambda: SiameseNetworks(net(), ACCURACY, D, pairs="odd"), "pairs is 'odd'; it must be 'balanced' or 'as_drawn'"),
        (lambda: SiameseNetworks(net(), ACCURACY, D, inner_steps=-1), "inner_steps is -1; it must be >= 0"),
        (lambda: SiameseNetworks(net(), ACCURACY, D, inner_steps=1, inner_lr=-1.0), "inner_lr is -1.0; it must be >= 0"),
        (lambda: SiameseNetworks(nn.BatchNorm1d(D), ACCURACY, D, inner_steps=1), "the module has running buffers"),
        (lambda: SiameseNetworks(nn.Identity(), ACCURACY, D, inner_steps=1), "no parameter is left to adapt"),
        (lambda: FineTuning(net(), ACCURACY, 0.1, decay=-1), "decay is -1; it must be >= 0"),
        (lambda: LinearProbe(net(), ACCURACY, 0.1, head="round"), "head is 'round'; it must be 'linear' or 'cosine'"),
        (lambda: LinearProbe(net(), ACCURACY, 0.1, weight_decay=-1), "weight_decay is -1; it must be >= 0"),
        (lambda: LinearProbe(net(), ACCURACY, 0.1, scale=0), "scale is 0; it must be > 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
