"""MAML against numbers worked out by hand and against learn2learn's implementation."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML
from mamllit.objectives import Classification, Regression


def one(episodes: Episode, i: int) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def gradient(method: MAML, episode: Episode) -> dict[str, Tensor]:
    """Plain autograd of one episode's meta-loss."""
    names, params = zip(*method.backbone.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(method.meta_loss(episode)[0], params), strict=True))


# ---- by hand -------------------------------------------------------------------------------------------------------

# f(x) = w x, w = 0, alpha = 0.1; support (1, 1), query (2, 2); L = squared error.
#   support gradient 2 (w - 1), Hessian 2, so each step multiplies the distance to 1 by 0.8: w = 0, 0.2, 0.36
#   query loss (2 phi - 2)^2, its derivative 4 (2 phi - 2)
#   one step:  loss 2.56,   derivative -6.4,  exact -6.4 * 0.8 = -5.12
#   two steps: loss 1.6384, derivative -5.12, exact -5.12 * 0.8^2 = -3.2768
BY_HAND = [
    (1, False, 2.56, -5.12),
    (1, True, 2.56, -6.4),
    (2, False, 1.6384, -3.2768),
    (2, True, 1.6384, -5.12),
]


@pytest.mark.parametrize(("steps", "first_order", "loss", "derivative"), BY_HAND)
def test_one_parameter_worked_out_by_hand(steps: int, first_order: bool, loss: float, derivative: float) -> None:
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    method = MAML(net, Regression(), 0.1, steps, "mean", first_order)
    support, query = (Examples(*(torch.full((1, 1), value, dtype=torch.float64),) * 2) for value in (1.0, 2.0))
    value, logs = method.meta_loss(Episode(support, query))
    assert value.item() == pytest.approx(loss, rel=1e-12)
    assert logs["mse"].item() == pytest.approx(loss, rel=1e-12)
    assert gradient(method, Episode(support, query))["weight"].item() == pytest.approx(derivative, rel=1e-12)


# ---- learn2learn ---------------------------------------------------------------------------------------------------


def learn2learn_gradient(net: nn.Module, loss: Callable, episodes: Episode, alpha: float, steps: int, first: bool):
    """Mean over the episodes of the query loss's gradient, as learn2learn's MAML computes it."""
    l2l = pytest.importorskip("learn2learn", reason="learn2learn, the oracle of this test, is not installed")
    maml = l2l.algorithms.MAML(net, lr=alpha, first_order=first)
    tasks = len(episodes.support.x)
    net.zero_grad()
    for i in range(tasks):
        support, query = one(episodes, i)
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(loss(learner(support.x), support.y))
        (loss(learner(query.x), query.y) / tasks).backward()
    return {name: value.grad.clone() for name, value in net.named_parameters()}


def assert_same_gradient(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == {f"method.backbone.{name}" for name in theirs}
    a = torch.cat([ours[f"method.backbone.{name}"].reshape(-1) for name in theirs])
    b = torch.cat([theirs[name].reshape(-1) for name in theirs])
    assert b.norm() > 1e-3
    assert (a - b).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("steps", [1, 5])
def test_equals_learn2learn_on_sine(steps: int, first_order: bool, sine_episodes: Callable[..., Episode]) -> None:
    net = MLP(1, [40, 40], 1).double()
    episodes = sine_episodes(3, shots=10, queries=10)
    theirs = learn2learn_gradient(net, F.mse_loss, episodes, 0.01, steps, first_order)
    method = MAML(net, Regression(), 0.01, steps, "sum_over_shots", first_order, frozen=())
    assert_same_gradient(MetaGradient(method)(episodes).gradient, theirs)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("steps", [1, 5])
def test_equals_learn2learn_on_conv4(
    steps: int, first_order: bool, downsample: str, image_episodes: Callable[..., Episode]
) -> None:
    """The paper's reduction, written down anew: losses summed and divided by the 2 shots; all parameters adapted."""
    net = Conv4(1, 3, 3, 16, downsample).double()
    episodes = image_episodes(2, ways=3, shots=2, queries=2, side=16)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y, reduction="sum") / 2

    theirs = learn2learn_gradient(net, loss, episodes, 0.05, steps, first_order)
    method = MAML(net, Classification(), 0.05, steps, "sum_over_shots", first_order, frozen=())
    assert_same_gradient(MetaGradient(method)(episodes).gradient, theirs)


# ---- what it is made of --------------------------------------------------------------------------------------------


def test_the_norms_shift_and_scale_are_meta_learned_but_not_adapted(image_episodes: Callable[..., Episode]) -> None:
    net = Conv4(1, 3, 3, 8, "stride", norm_scale=True).double()
    method = MAML(net, Classification(), 0.1, 2, "sum_over_shots")
    episode = one(image_episodes(1), 0)
    state = method.adapt(episode.support)
    before = dict(net.named_parameters())
    unchanged = {name for name in before if name not in state or torch.equal(before[name], state[name])}
    expected = {f"norms.{i}.{which}" for i in range(4) for which in ("beta", "gamma")}
    # conv biases have a gradient of zero up to rounding, for the norm takes them out again: they may or may not move
    assert unchanged - {f"convs.{i}.bias" for i in range(4)} == expected
    outer = gradient(method, episode)
    assert all(outer[name].abs().max() > 1e-6 for name in expected)


def test_adapt_takes_its_own_number_of_steps_unless_told(sine_episodes: Callable[..., Episode]) -> None:
    method = MAML(MLP(1, [8], 1).double(), Regression(), 0.01, 2, "mean")
    support = one(sine_episodes(1), 0).support
    trajectory = method.trajectory(support, 3)
    for steps, expected in ((None, 2), (0, 0), (3, 3)):
        state = method.adapt(support, steps)
        assert all(torch.equal(state[name], trajectory[expected][name]) for name in state)


def test_sum_over_shots_takes_the_inner_step_that_mean_takes_with_ways_times_the_step_size(
    image_episodes: Callable[..., Episode],
) -> None:
    net = MLP(64, [8], 3).double()
    support = one(image_episodes(1, ways=3), 0).support
    summed = MAML(net, Classification(), 0.1, 2, "sum_over_shots").adapt(support)
    mean = MAML(net, Classification(), 0.3, 2, "mean").adapt(support)
    for name in summed:
        torch.testing.assert_close(summed[name], mean[name])


def test_meta_loss_of_sum_over_shots_is_n_q_over_k_times_the_mean(image_episodes: Callable[..., Episode]) -> None:
    episode = one(image_episodes(1, ways=3, shots=2, queries=5), 0)
    method = MAML(MLP(64, [8], 3).double(), Classification(), 0.1, 1, "sum_over_shots")
    output = method.predict(method.adapt(episode.support), episode.query.x)
    loss, logs = method.meta_loss(episode)
    torch.testing.assert_close(loss, 3 * 5 / 2 * F.cross_entropy(output, episode.query.y))
    assert logs["accuracy"] == (output.argmax(-1) == episode.query.y).double().mean()


def test_transductive_tells_whether_batch_statistics_are_used() -> None:
    assert MAML(MLP(4, [3], 2, norm=True), Classification(), 0.1, 1, "mean").transductive
    assert not MAML(MLP(4, [3], 2), Classification(), 0.1, 1, "mean").transductive


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
        ({"inner_lr": -0.5}, r"inner_lr is -0.5; it must be >= 0"),
        ({"reduction": "sum"}, r"reduction is 'sum'; it must be 'sum_over_shots' or 'mean'"),
        ({"frozen": ["*"]}, r"no parameter is left to adapt"),
        ({"backbone": nn.Sequential(nn.BatchNorm2d(3))}, r"running buffers.*0\.running_mean"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {
        "backbone": MLP(1, [4], 1),
        "objective": Regression(),
        "inner_lr": 0.1,
        "inner_steps": 1,
        "reduction": "mean",
    }
    MAML(**right)
    with pytest.raises(ValueError, match=message):
        MAML(**{**right, **wrong})


def test_a_negative_number_of_steps_is_refused() -> None:
    method = MAML(MLP(1, [4], 1), Regression(), 0.01, 1, "mean")
    with pytest.raises(ValueError, match=r"steps is -1; it must be >= 0"):
        method.adapt(Examples(torch.rand(3, 1), torch.rand(3, 1)), steps=-1)
