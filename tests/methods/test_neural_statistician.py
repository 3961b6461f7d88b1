"""The neural statistician: divergences and bound by other ways to the same numbers, and what a set may not tell."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.backbones import MLP, StatisticianDecoder, StatisticianEncoder
from mamllit.core.episode import Episode, Examples
from mamllit.core.noise import episode_key
from mamllit.core.tree import item
from mamllit.figures.sample_plots import conditioned_samples
from mamllit.methods import NeuralStatistician
from mamllit.methods.neural_statistician import Gaussian, kl
from mamllit.objectives import Classification

SIDE, CODE, CONTEXT = 4, 2, 3


def make(**settings: Any) -> NeuralStatistician:
    torch.manual_seed(0)
    encoder = MLP(SIDE * SIDE, [6], 5, activation="tanh")
    decoder = MLP(CODE + CONTEXT, [6], SIDE * SIDE, activation="tanh")
    settings = {"features": 5, "code": CODE, "context": CONTEXT, "hidden": 6, **settings}
    return NeuralStatistician(encoder, decoder, Classification(), **settings).double()


@pytest.fixture
def episodes(image_episodes: Callable[..., Episode]) -> Episode:
    return image_episodes(2, ways=3, shots=2, queries=3, side=SIDE)


def gaussian(*shape: int) -> Gaussian:
    return Gaussian(torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64))


def test_the_divergence_is_that_of_many_samples() -> None:
    p, q = gaussian(3), gaussian(3)

    def log_density(g: Gaussian, x: Tensor) -> Tensor:
        return -((x - g.mean).square() / g.log_var.exp() + g.log_var + math.log(2 * math.pi)).sum(-1) / 2

    x = p.sample(torch.randn(400_000, 3, dtype=torch.float64))
    assert float(kl(p, q)) == pytest.approx(float((log_density(p, x) - log_density(q, x)).mean()), rel=0.02)
    many, others = gaussian(50, 3), gaussian(50, 3)
    torch.testing.assert_close(kl(many, many), torch.zeros(50, dtype=torch.float64))
    assert (kl(many, others) > 0).all()
    by_torch = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(g.mean, (g.log_var / 2).exp()) for g in (many, others))
    )
    torch.testing.assert_close(kl(many, others), by_torch.sum(-1))


def test_the_bound_is_that_of_a_loop_over_sets_and_images(episodes: Episode) -> None:
    """One image and one set at a time, with the noise that the method draws, by torch's own distributions."""
    method, episode = make(keep=1 - 1e-9, dilate=0.0), item(episodes, 0)  # none left out, but their number counts
    key = episode_key(episode.support)
    sets = (torch.rand(3, 5, 1, SIDE, SIDE, dtype=torch.float64) < 0.5).double()
    reconstruction, of_codes, of_context = method.bound(sets, method.encoded(sets), key)
    normals: list[Tensor] = []
    sample = Gaussian.sample

    def recorded(self: Gaussian, noise: Tensor) -> Tensor:
        normals.append(noise)
        return sample(self, noise)

    Gaussian.sample = recorded  # type: ignore[method-assign]
    try:
        method.bound(sets, method.encoded(sets), key)
    finally:
        Gaussian.sample = sample  # type: ignore[method-assign]

    def normal(g: Gaussian) -> torch.distributions.Normal:
        return torch.distributions.Normal(g.mean, (g.log_var / 2).exp())

    kl_of = torch.distributions.kl_divergence
    for i, images in enumerate(sets):
        h = torch.stack([method.backbone(image[None])[0] for image in images])
        pooled = torch.stack([F.elu(method.before(row)) for row in h]).mean(0)
        q_c = normal(method.after(torch.cat([pooled, torch.tensor([5.0], dtype=torch.float64)])))
        c = q_c.loc + q_c.scale * normals[0][i]
        total = kl_of(q_c, torch.distributions.Normal(torch.zeros(CONTEXT), torch.ones(CONTEXT)).expand([CONTEXT])).sum()
        for j, image in enumerate(images):
            q_z, p_z = normal(method.posterior(torch.cat([h[j], c]))), normal(method.prior(c))
            z = q_z.loc + q_z.scale * normals[1][i, j]
            pixels = torch.distributions.Bernoulli(logits=method.decoder(torch.cat([c, z])[None])[0])
            total = total + kl_of(q_z, p_z).sum() - pixels.log_prob(image.flatten()).sum()
        torch.testing.assert_close((of_codes + of_context - reconstruction)[i], total / 5)


def test_the_gradient_is_the_slope(episodes: Episode, assert_meta_gradient_is_the_slope: Any) -> None:
    assert_meta_gradient_is_the_slope(make(), episodes)


def test_a_set_is_known_by_its_images_alone() -> None:
    method = make()
    images = torch.rand(1, 5, 1, SIDE, SIDE, dtype=torch.float64)
    whole = method.gather(images)
    torch.testing.assert_close(method.gather(images[:, torch.randperm(5)]), whole)
    features = method.backbone(images[0, :1].flatten(1))
    one, two = (method.pool(features.expand(1, n, -1), torch.full((1, n), 1.0 / n).double()) for n in (1, 2))
    torch.testing.assert_close(one, two)  # {x, x} is {x}, where the number is the same
    left_out = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]]).double()
    all_features = method.backbone(images[0])[None]
    kept = method.pool(all_features[:, [0, 2, 3]], torch.ones(1, 3).double())
    torch.testing.assert_close(method.pool(all_features, left_out), kept)


def test_a_query_is_of_the_class_from_which_its_posterior_is_least_far(episodes: Episode) -> None:
    method, episode = make(), item(episodes, 0)
    logits = method.predict(episode.support, episode.query.x)
    support, query = episode.support.x.round(), episode.query.x.round()
    for i in range(3):
        of_class = method.gather(support[episode.support.y == i][None])
        for j in range(len(query)):
            torch.testing.assert_close(logits[j, i], -kl(of_class, method.gather(query[j][None, None]))[0])
    alone = method.predict(episode.support, episode.query.x[2:3])
    torch.testing.assert_close(alone[0], logits[2])  # this encoder has no norm


def test_in_training_the_query_is_judged_by_the_features_that_the_bound_has(episodes: Episode) -> None:
    """On black and white images none of which is made thicker, it is what `predict` says."""
    method, episode = make(dilate=0.0), item(episodes, 0)
    order = torch.randperm(len(episode.query.y))
    support, query = (Examples(part.x.round(), part.y, 3) for part in episode)
    query = Examples(query.x[order], query.y[order], 3)
    _, logs = method.meta_loss(Episode(support, query))
    assert logs["accuracy"] == (method.predict(support, query.x).argmax(-1) == query.y).double().mean()


def test_training_images_are_black_and_white_anew_in_each_episode(episodes: Episode) -> None:
    method = make(dilate=1.0)
    sets = torch.full((2, 3, 1, SIDE, SIDE), 0.3, dtype=torch.float64)
    keys = [episode_key(item(episodes, i).support) for i in range(2)]
    one, other = (method.drawn(sets, key) for key in keys)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(one, other)
    assert torch.equal(one, method.drawn(sets, keys[0]))
    dot = torch.zeros(1, 1, 1, SIDE, SIDE, dtype=torch.float64)
    dot[..., 2, 2] = 1
    thick = method.drawn(dot, keys[0])[0, 0, 0]
    assert thick.sum() == 4 and (thick[1:3, 1:3] == 1).all()
    assert torch.equal(make(dilate=0.0).drawn(dot, keys[0]), dot)


def test_the_papers_networks() -> None:
    encoder, decoder = StatisticianEncoder(), StatisticianDecoder()
    method = NeuralStatistician(encoder, decoder, Classification())
    assert sum(value.numel() for value in method.parameters()) == pytest.approx(9.20e6, rel=0.005)
    assert encoder(torch.rand(2, 1, 28, 28)).shape == (2, 4096)
    assert decoder(torch.rand(2, 528)).shape == (2, 1, 28, 28)
    samples = method.imagined(torch.rand(2, 3, 1, 28, 28), 4)
    assert samples.shape == (2, 4, 1, 28, 28)
    assert samples.min() >= 0 and samples.max() <= 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"code": 0, "hidden": -1}, "code is 0; it must be >= 1; hidden is -1; it must be >= 1"),
        ({"keep": 0.0}, "keep is 0.0; it must be in (0, 1]"),
        ({"dilate": 1.5}, "dilate is 1.5; it must be in [0, 1]"),
        ({"likelihood": "normal"}, "likelihood is 'normal'; it must be 'bernoulli' or 'gaussian'"),
        (
            {"likelihood": "gaussian"},
            "dilate is 0.5, but likelihood 'gaussian' does not dilate images; set dilate: 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make(**wrong)


def test_samples_are_drawn_as_a_figure() -> None:
    figure = conditioned_samples(torch.rand(2, 3, 1, 8, 8), torch.rand(2, 4, 1, 8, 8), "toys", dark_on_light=True)
    assert len(figure.axes) == 2 * 7


# ---- sets of real numbers, section 5.1 of the paper ------------------------------------------------------------------


def drawn_sets(number: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sets [N, size, 1], each of one of four distributions, with their means and variances [N, 2]."""
    mean = torch.rand(number, 1, generator=generator) * 2 - 1
    variance = 0.5 + 1.5 * torch.rand(number, 1, generator=generator)
    kind = torch.randint(4, (number, 1), generator=generator)
    u = torch.rand(number, size, generator=generator).clamp(1e-6, 1 - 1e-6)
    laplace = -(u - 0.5).sign() * (1 - 2 * (u - 0.5).abs()).clamp_min(1e-6).log() / math.sqrt(2)
    shapes = (-u.log() - 1, torch.randn(number, size, generator=generator), (u - 0.5) * math.sqrt(12), laplace)
    standard = torch.stack(shapes).gather(0, kind.expand(-1, size)[None])[0]
    return (mean + variance.sqrt() * standard)[..., None], torch.cat([mean, variance], 1)


def explained(inputs: Tensor, targets: Tensor) -> list[float]:
    """The share of each target's variance, on the second half, that a linear function fitted to the first half explains."""
    inputs, half = torch.cat([inputs, torch.ones(len(inputs), 1)], 1), len(inputs) // 2
    fitted = inputs[half:] @ torch.linalg.lstsq(inputs[:half], targets[:half]).solution
    left = (fitted - targets[half:]).square().sum(0) / (targets[half:] - targets[half:].mean(0)).square().sum(0)
    return (1 - left).tolist()


@pytest.mark.slow
def test_the_context_of_a_set_of_numbers_tells_their_mean_and_variance() -> None:
    """A thirtieth of the paper's training: nearly as well as the mean and variance of the set themselves tell them."""
    torch.manual_seed(0)
    encoder, decoder = MLP(1, [32, 32], 32), MLP(7, [32, 32], 2)
    sizes = {"features": 32, "code": 4, "context": 3, "hidden": 32}
    method = NeuralStatistician(
        encoder, decoder, Classification(), **sizes, keep=1.0, dilate=0.0, likelihood="gaussian"
    )  # fmt: skip
    optimizer, generator = torch.optim.Adam(method.parameters(), 0.002), torch.Generator().manual_seed(0)
    for i in range(600):
        sets, _ = drawn_sets(16, 200, generator)
        reconstruction, of_codes, of_context = method.bound(sets, method.encoded(sets), torch.tensor(i))
        optimizer.zero_grad()
        (of_codes + of_context - reconstruction).mean().backward()
        optimizer.step()
    sets, truth = drawn_sets(1000, 200, torch.Generator().manual_seed(9))
    with torch.no_grad():
        found = explained(method.gather(sets).mean, truth)
    best = explained(torch.cat([sets.mean(1), sets.var(1)], 1), truth)
    assert found[0] > 0.98 * best[0], (found, best)
    assert found[1] > 0.8 * best[1], (found, best)
    new = method.imagined(sets[:200], 200)
    assert new.shape == (200, 200, 1)
    assert explained(new.mean(1), truth[:200, :1])[0] > 0.9


def test_gaussian_log_likelihoods_are_those_of_torch() -> None:
    decoder = MLP(CODE + CONTEXT, [6], 2 * 4, activation="tanh")
    method = NeuralStatistician(
        MLP(4, [6], 5), decoder, Classification(), 5, CODE, CONTEXT, 6, dilate=0.0, likelihood="gaussian"
    ).double()  # fmt: skip
    sets, latent = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, CODE + CONTEXT, dtype=torch.float64)
    mean, log_var = decoder(latent.flatten(0, 1)).unflatten(0, (3, 2)).chunk(2, -1)
    expected = torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(sets).sum(-1)
    torch.testing.assert_close(method.log_likelihood(sets, latent), expected)
    assert method.drawn(sets, torch.tensor(0)) is sets
    assert method.seen(sets) is sets
