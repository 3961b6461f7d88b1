"""Averaged multi-task networks: each is what torch.optim.Adam makes of it, and the meta-parameters are their mean."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.data import SineDataModule
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML, MultiTask
from mamllit.objectives import Regression

CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def everything(episode: Episode) -> Examples:
    return episode.support.joined(episode.query)


def multi_task(**changes: Any) -> MultiTask:
    settings = {"inner_lr": 0.02, "inner_steps": 3, "reduction": "mean", "train_lr": 0.01, "train_steps": 5, "penalty": "none"}
    return MultiTask(MLP(1, [8, 8], 1, activation="tanh").double(), Regression(), **(settings | changes))


@pytest.mark.parametrize("penalty", ["none", "l2", "l2_to_mean"])
def test_a_network_is_what_adam_makes_of_it(penalty: Any, sine_episodes: Callable[..., Episode]) -> None:
    method, examples = multi_task(penalty=penalty, penalty_weight=0.3), everything(one(sine_episodes(1)))
    method.begin_iteration(1)
    mean = [value.detach() for value in method.backbone.parameters()]
    params = {name: value.clone().requires_grad_() for name, value in method.begun(examples).items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    for _ in range(5):
        loss = F.mse_loss(functional_call(method.backbone, params, (examples.x,)), examples.y)
        for value, centre in zip(params.values(), mean, strict=True):
            loss = (
                loss
                + {"none": 0, "l2": 0.3, "l2_to_mean": 0.3}[penalty]
                * (value - (centre if penalty == "l2_to_mean" else 0)).square().sum()
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(method.trained(examples), {name: value.detach() for name, value in params.items()}, **CLOSE)


def test_under_sgd_at_rate_1_the_meta_parameters_are_the_mean_of_all_networks(sine_episodes: Callable[..., Episode]) -> None:
    """Two meta-updates of three tasks each: nothing is left of where the meta-parameters began."""
    method, episodes = multi_task(), sine_episodes(6)
    networks = [method.trained(everything(one(episodes, i))) for i in range(6)]
    gradient, optimizer = MetaGradient(method), torch.optim.SGD(method.parameters(), lr=1.0)
    for update in range(2):
        method.begin_iteration(update)
        rows = slice(3 * update, 3 * update + 3)
        step = gradient(Episode(*(Examples(part.x[rows], part.y[rows], part.ways) for part in episodes)))
        for value, g in zip(method.parameters(), step.gradient.values(), strict=True):
            value.grad = g
        optimizer.step()
    mean = {name: torch.stack([network[name] for network in networks]).mean(0) for name in networks[0]}
    torch.testing.assert_close({name: value.detach() for name, value in method.backbone.named_parameters()}, mean, **CLOSE)


def test_before_the_first_update_there_is_no_mean_to_be_drawn_to(sine_episodes: Callable[..., Episode]) -> None:
    examples = everything(one(sine_episodes(1)))
    method = multi_task(penalty="l2_to_mean", penalty_weight=5.0)
    free = method.trained(examples)
    method.begin_iteration(1)
    drawn = method.trained(examples)
    method.penalty = "none"
    torch.testing.assert_close(method.trained(examples), free, **CLOSE)
    own = dict(method.backbone.named_parameters())

    def distance(params: dict[str, torch.Tensor]) -> float:
        return sum(float((own[name] - value).detach().square().sum()) for name, value in params.items())

    assert distance(drawn) < distance(free)


def test_networks_begin_as_pytorch_s_and_differ_between_tasks(sine_episodes: Callable[..., Episode]) -> None:
    method, episodes = multi_task(), sine_episodes(2)
    first, second = (method.begun(everything(one(episodes, i))) for i in range(2))
    bounds = {"layers.0": 1.0, "layers.1": 8**-0.5, "layers.2": 8**-0.5}
    for name, value in first.items():
        bound = bounds[name.rpartition(".")[0]]
        assert value.abs().max() <= bound
        assert not torch.equal(value, second[name])
    assert first["layers.1.weight"].abs().max() > 0.8 * bounds["layers.1"]


def test_adaptation_is_maml_s(sine_episodes: Callable[..., Episode]) -> None:
    method, support = multi_task(), one(sine_episodes(1)).support
    maml = MAML(method.backbone, Regression(), 0.02, 3, "mean")
    torch.testing.assert_close(method.adapt(support), maml.adapt(support), **CLOSE)


def test_the_meta_gradient_is_the_slope(
    sine_episodes: Callable[..., Episode], assert_meta_gradient_is_the_slope: Callable[..., None]
) -> None:
    assert_meta_gradient_is_the_slope(multi_task(), sine_episodes(3))


def test_the_networks_fit_their_own_sine_waves() -> None:
    """400 steps instead of the experiment's 1,000; a network that knows nothing has an error of about 4."""
    data = SineDataModule(queries=90, meta_batch_size=5, seed=0)
    episodes = data.build(data.draw(0, "train", 10, 90, 0, 5)).episodes
    method = MultiTask(MLP(1, [40, 40], 1), Regression(), 0.01, 1, "mean", 0.01, 400, "none")
    assert MetaGradient(method)(episodes).logs["mse"] < 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_lr": 0.0}, r"train_lr is 0.0; it must be > 0"),
        ({"train_steps": 0}, r"train_steps is 0; it must be >= 1"),
        ({"penalty": "l1"}, r"penalty is 'l1'; it must be 'none', 'l2' or 'l2_to_mean'"),
        ({"penalty_weight": -1.0}, r"penalty_weight is -1.0; it must be >= 0"),
        ({"inner_lr": -1.0}, r"inner_lr is -1.0; it must be >= 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_task(**wrong)
