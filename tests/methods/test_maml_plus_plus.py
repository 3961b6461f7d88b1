"""MAML++: all switches off is MAML, and each switch by itself."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.data import SineDataModule
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MAML, MAMLPlusPlus
from mamllit.objectives import Classification, Regression
from mamllit.systems import MetaLearner

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def on_sine(steps: int = 3, epochs: int = 0, rates: bool = False, lr: float = 0.05, norm: bool = False) -> MAMLPlusPlus:
    net = MLP(1, [8, 8], 1, activation="tanh", norm=norm).double()
    return MAMLPlusPlus(net, Regression(), lr, steps, "mean", epochs, rates, norm).double()


def on_images(steps: int = 2, epochs: int = 0, rates: bool = False, norm: bool = False) -> MAMLPlusPlus:
    net = Conv4(1, 4, 3, 8, "stride", norm_scale=True)
    return MAMLPlusPlus(net, Classification(), 0.1, steps, "mean", epochs, rates, norm).double()


# ---- what ties it to MAML ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
def test_all_switches_off_is_maml(first_order: bool, image_episodes: Callable[..., Episode]) -> None:
    net, episodes = Conv4(1, 4, 3, 8, "stride", norm_scale=True).double(), image_episodes(3)
    method = MAMLPlusPlus(net, Classification(), 0.1, 3, "sum_over_shots", 0, False, False, first_order)
    maml = MAML(net, Classification(), 0.1, 3, "sum_over_shots", first_order)
    torch.testing.assert_close(MetaGradient(method)(episodes)._asdict(), MetaGradient(maml)(episodes)._asdict(), **CLOSE)


def test_untrained_rates_and_norms_predict_what_maml_predicts(image_episodes: Callable[..., Episode]) -> None:
    method, episode = on_images(rates=True, norm=True), one(image_episodes(1))
    with torch.no_grad():
        for rate in method.rates:  # type: ignore[union-attr]
            rate.fill_(0.1)  # they were made in float32
    maml = MAML(method.backbone, Classification(), 0.1, 2, "mean")
    for ours, theirs in zip(method.trajectory(episode.support, 4), maml.trajectory(episode.support, 4), strict=True):
        torch.testing.assert_close(method.predict(ours, episode.query.x), maml.predict(theirs, episode.query.x), **CLOSE)


@pytest.mark.parametrize(
    "switches", [{}, {"epochs": 2}, {"rates": True}, {"norm": True}, {"epochs": 2, "rates": True, "norm": True}]
)
def test_the_meta_gradient_is_the_slope(
    switches: dict, sine_episodes: Callable[..., Episode], assert_meta_gradient_is_the_slope: Callable[..., None]
) -> None:
    assert_meta_gradient_is_the_slope(on_sine(**switches), sine_episodes(3))


# ---- the multi-step loss -------------------------------------------------------------------------------------------


def test_the_weights_sum_to_one_begin_equal_and_end_at_the_last_step() -> None:
    """N = 5 steps, E = 10 epochs of 500: the others fall by 1 / (N E) an epoch, to 0.03 / N, then to none."""
    method = on_sine(steps=5, epochs=10)
    for epoch in range(12):
        for iteration in (500 * epoch, 500 * epoch + 499):
            method.begin_iteration(iteration)
            weights = method.outer_weights()
            assert len(weights) == 5
            assert sum(weights) == pytest.approx(1, rel=1e-12)
            other = max(0.2 - epoch / 50, 0.006) if epoch < 10 else 0.0
            assert weights[:4] == pytest.approx([other] * 4)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("iteration", [0, 700, 5000])
def test_the_outer_loss_is_the_weighted_sum(iteration: int, memory: Any, sine_episodes: Callable[..., Episode]) -> None:
    """In stages and whole, against the sum written down anew."""
    method, episodes = on_sine(epochs=10), sine_episodes(3)
    method.begin_iteration(iteration)
    losses = []
    for i in range(3):
        episode = one(episodes, i)
        states = method.trajectory(episode.support, 3)[1:]
        terms = zip(method.outer_weights(), states, strict=True)
        losses.append(sum(weight * method.outer_loss(state, episode)[0] for weight, state in terms))
        torch.testing.assert_close(method.meta_loss(episode)[0], losses[-1], **CLOSE)
    mean = torch.stack(losses).mean()
    step = MetaGradient(method, memory=memory)(episodes)
    torch.testing.assert_close(step.loss, mean.detach(), **CLOSE)
    torch.testing.assert_close(
        list(step.gradient.values()), list(torch.autograd.grad(mean, list(method.parameters()))), **CLOSE
    )


@pytest.mark.slow
def test_a_compiled_step_follows_the_weights_of_the_epoch(image_episodes: Callable[..., Episode]) -> None:
    """On a CPU other methods of so few steps are recorded as one function, which would keep the weights of epoch 0."""
    method = MAMLPlusPlus(Conv4(1, 4, 3, 28, "stride").double(), Classification(), 0.1, 2, "mean", 10, False, False)
    episodes = image_episodes(2, side=28)
    plain, compiled = MetaGradient(method), MetaGradient(method, compiled=True)
    for iteration in (0, 2500, 5000):
        method.begin_iteration(iteration)
        torch.testing.assert_close(compiled(episodes)._asdict(), plain(episodes)._asdict(), **CLOSE)


def test_the_logged_metric_is_that_after_the_last_step(sine_episodes: Callable[..., Episode]) -> None:
    method, episode = on_sine(epochs=10), one(sine_episodes(1))
    last = method.outer_loss(method.adapt(episode.support), episode)[1]["mse"]
    torch.testing.assert_close(method.meta_loss(episode)[1]["mse"], last)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
def test_the_system_tells_the_method_how_far_meta_training_is() -> None:
    method = MAMLPlusPlus(MLP(1, [4], 1), Regression(), 0.01, 2, "mean", 3, False, False, epoch_iterations=2)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        max_steps=5, max_epochs=-1, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(MetaLearner(method), SineDataModule(meta_batch_size=2, seed=0))
    assert method.epoch == 2  # of the fifth update, number 4


# ---- rates and norms per step --------------------------------------------------------------------------------------


def test_each_step_has_its_own_rates(sine_episodes: Callable[..., Episode]) -> None:
    """Rates that are zero but for the second step: the first leaves the parameters, the third of two repeats the second's."""
    method, support = on_sine(steps=2, rates=True), one(sine_episodes(1)).support
    with torch.no_grad():
        for rate in method.rates:  # type: ignore[union-attr]
            rate.copy_(torch.tensor([0.0, 0.1], dtype=torch.float64))
    states = method.trajectory(support, 3)
    maml = MAML(method.backbone, Regression(), 0.1, 1, "mean").trajectory(support, 2)
    for ours, theirs in zip(states, (maml[0], maml[0], maml[1], maml[2]), strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, **CLOSE)


def test_every_step_s_rate_and_norm_gets_a_gradient(image_episodes: Callable[..., Episode]) -> None:
    method = on_images(steps=3, rates=True, norm=True)
    gradient = MetaGradient(method)(image_episodes(2)).gradient
    assert all(f"method.backbone.norms.0.{which}" not in gradient for which in ("beta", "gamma"))
    for name in ("method.norms.0", "method.norms.7", "method.rates.0"):
        assert (gradient[name].reshape(3, -1).norm(dim=1) > 1e-9).all(), name


def test_a_prediction_takes_the_norm_of_the_step_before_it_and_a_step_its_own(image_episodes: Callable[..., Episode]) -> None:
    """The last beta of step k shifts the features by k, so that the head's bias shows which one was read."""
    method, episode = on_images(steps=2, norm=True), one(image_episodes(1))
    seen: list[float] = []
    method.backbone.norms[3].register_forward_pre_hook(lambda norm, _: seen.append(float(norm.beta.mean())))
    with torch.no_grad():
        for name, norm in zip(method.norm_names, method.norms, strict=True):
            if name == "norms.3.beta":
                norm.copy_(torch.tensor([[1.0], [2.0]]).expand(2, 4))
    state, found = method.start(1), []
    for _ in range(4):
        seen.clear()
        method.predict(state, episode.query.x)
        predicted = seen[-1]
        state = method.step(state, episode.support)
        found.append((predicted, seen[-1]))
    assert found == [(1.0, 1.0), (1.0, 2.0), (2.0, 2.0), (2.0, 2.0)]


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": 0}, r"inner_steps is 0; it must be >= 1"),
        ({"multi_step_epochs": -1}, r"multi_step_epochs is -1; it must be >= 0"),
        ({"epoch_iterations": 0}, r"epoch_iterations is 0; it must be >= 1"),
        ({"per_step_norm": True}, r"per_step_norm is true, but MLP has no BatchStatNorm; use false"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {
        "backbone": MLP(1, [4], 1), "objective": Regression(), "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean",
        "multi_step_epochs": 0, "learned_rates": False, "per_step_norm": False,
    }  # fmt: skip
    MAMLPlusPlus(**right)
    with pytest.raises(ValueError, match=message):
        MAMLPlusPlus(**{**right, **wrong})
