"""Joint training: no inner loop in its loss, plain gradient descent in its adaptation, and an oracle that knows the task."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.data import SineDataModule
from mamllit.engine.evaluation import evaluate
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML, JointTraining
from mamllit.objectives import Regression

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def joint(inner_lr: float = 0.02) -> JointTraining:
    return JointTraining(MLP(1, [8, 8], 1, activation="tanh").double(), Regression(), inner_lr, 3, "mean")


def test_the_loss_is_that_of_all_examples_at_the_meta_parameters(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = joint(), sine_episodes(3)
    support, query = episodes
    x, y = (torch.cat(parts, 1).flatten(0, 1) for parts in ((support.x, query.x), (support.y, query.y)))
    expected = F.mse_loss(method.backbone(x), y)
    step = MetaGradient(method)(episodes)
    torch.testing.assert_close(step.loss, expected.detach(), **CLOSE)
    gradient = torch.autograd.grad(expected, list(method.parameters()))
    torch.testing.assert_close(list(step.gradient.values()), list(gradient), **CLOSE)


def test_on_the_query_alone_it_is_maml_without_inner_steps(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = joint(), sine_episodes(3)
    maml = MetaGradient(MAML(method.backbone, Regression(), 0.02, 0, "mean"))(episodes)
    same = MetaGradient(method)(Episode(episodes.query, episodes.query))
    torch.testing.assert_close(same._asdict(), maml._asdict(), **CLOSE)


def test_adaptation_is_maml_s(sine_episodes: Callable[..., Episode]) -> None:
    method, support = joint(), one(sine_episodes(1)).support
    maml = MAML(method.backbone, Regression(), 0.02, 3, "mean")
    torch.testing.assert_close(method.adapt(support), maml.adapt(support), **CLOSE)


def test_the_meta_gradient_is_the_slope(
    sine_episodes: Callable[..., Episode], assert_meta_gradient_is_the_slope: Callable[..., None]
) -> None:
    assert_meta_gradient_is_the_slope(joint(), sine_episodes(3))


def test_an_oracle_learns_what_a_pretrained_network_cannot() -> None:
    """150 updates: the network that gets amplitude and phase is far below the mean function's error, about 3."""
    errors = []
    for reveal in (False, True):
        torch.manual_seed(0)
        data = SineDataModule(meta_batch_size=25, seed=0, reveal_task=reveal, test_shots=[10], test_episodes=100)
        method = JointTraining(MLP(3 if reveal else 1, [40, 40], 1), Regression(), 0.01, 1, "mean")
        gradient, optimizer = MetaGradient(method), torch.optim.Adam(method.parameters(), lr=0.01)
        for i in range(150):
            batch = data.build(data.draw(0, "train", 10, 10, 25 * i, 25))
            step = gradient(batch.episodes)
            for value, g in zip(method.parameters(), step.gradient.values(), strict=True):
                value.grad = g
            optimizer.step()
        episodes = data.episodes(data.evaluation_sets("test")[1]).episodes
        errors.append(float(evaluate(method, episodes, 0).mean()))
    assert errors[0] > 2
    assert errors[1] < 0.4 * errors[0]
