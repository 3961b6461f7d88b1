"""Metric methods (Siamese networks have a file of their own): numbers by hand, and what must not change a prediction."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item
from mamllit.engine.evaluation import evaluate
from mamllit.methods import (
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
    ],
)
def test_settings_out_of_bounds_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
