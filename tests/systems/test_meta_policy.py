"""`MetaPolicy`: a training step acts, adapts, acts and steps; evaluation by the paper's protocol; resuming bit for bit."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from short_fits import make_data as make_sine_data
from short_fits import make_trainer

from mamllit.data import ControlDataModule
from mamllit.methods import MAML, PrototypicalNetworks
from mamllit.objectives import Classification, Regression
from mamllit.rl import GaussianPolicy, Navigation, PolicyGradient, ProximalAdam, Tabular, TrustRegion
from mamllit.systems import MetaPolicy

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def make_learner(inner_lr: float = 0.1, **changes: Any) -> MetaPolicy:
    torch.manual_seed(0)
    method = MAML(GaussianPolicy(2, 2, hidden=[8]), PolicyGradient(), inner_lr, 1, "mean")
    return MetaPolicy(method, **{"eval_steps": 2, **changes})


def make_data(**changes: Any) -> ControlDataModule:
    arguments = {"shots": 4, "queries": 5, "meta_batch_size": 3, "test_shots": [4], "val_episodes": 2, "standard_episodes": 3}
    return ControlDataModule(**{"world": Navigation(horizon=8), "seed": 0, **arguments, **changes})


def weights(learner: MetaPolicy) -> torch.Tensor:
    return torch.cat([value.detach().reshape(-1) for value in learner.parameters()])


def test_training_steps_move_the_policy_within_the_trust_region() -> None:
    learner, trainer = make_learner(), make_trainer(3)
    before = weights(learner)
    trainer.fit(learner, datamodule=make_data())
    assert trainer.global_step == 3
    assert not torch.equal(weights(learner), before)
    taken = trainer.optimizers[0].taken
    assert 0 < taken.kl <= 0.01
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["train/kl"] == pytest.approx(taken.kl)
    assert {"train/return_step0", "train/return_step1", "train/finished", "train/entropy"} <= set(logged)


def test_an_ordinary_optimiser_and_another_curvature_run_too() -> None:
    learner = make_learner(optimizer=lambda params: torch.optim.Adam(params, lr=1e-3))
    before = weights(learner)
    make_trainer(2).fit(learner, datamodule=make_data())
    assert 0 < (weights(learner) - before).abs().max() < 3e-3
    proximal = make_learner(optimizer=lambda params: ProximalAdam(params, lr=1e-3, epochs=3))
    trainer = make_trainer(2)
    trainer.fit(proximal, datamodule=make_data())
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {6}, "three steps on each meta-batch"
    make_trainer(1).fit(learner := make_learner(curvature=0.3), datamodule=make_data())
    assert not torch.equal(weights(learner), before)


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    unbroken, broken, resumed = make_learner(), make_learner(), make_learner()
    make_trainer(4).fit(unbroken, datamodule=make_data())
    trainer = make_trainer(2)
    trainer.fit(broken, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    make_trainer(4).fit(resumed, datamodule=make_data(), ckpt_path=str(tmp_path / "two.ckpt"))
    assert torch.equal(weights(resumed), weights(unbroken))
    assert not torch.equal(weights(broken), weights(unbroken))


def test_evaluation_gives_the_returns_after_each_step_on_the_paper_s_tasks_and_others() -> None:
    learner, trainer = make_learner(), make_trainer(inference_mode=True)  # Lightning's own default
    data = make_data(test_shots=[4, 6])
    trainer.test(learner, datamodule=data, verbose=False)
    assert list(learner.summaries) == ["paper/4-shot", "paper/6-shot", "standard/4-shot", "standard/6-shot"]
    paper = learner.summaries["paper/4-shot"]
    assert paper.episodes == 40 and paper.mean.shape == (3,)
    # an untrained policy wanders off; eight steps from the goals' mean distance of 0.4 at least
    assert -8 < paper.mean[0] < -8 * 0.4
    batch = data.draw_for(data.evaluation_sets("test")[0], 0, 40)
    assert torch.equal(batch.task, data.world.paper_tasks())
    torch.testing.assert_close(learner.practise_on(batch, 4, 2).returns.mean(0).double(), paper.mean)


def test_later_steps_of_an_evaluation_are_half_as_long() -> None:
    data = make_data()
    batch = data.draw_for(data.evaluation_sets("test")[0], 0, 3)
    found = {}
    for later in (0.5, 1.0):
        learner = make_learner(later_steps=later)
        make_trainer().test(learner, datamodule=data, verbose=False)
        found[later] = learner.practise_on(batch, 4, 2).returns
    assert torch.equal(found[0.5][:, :2], found[1.0][:, :2])
    assert not torch.equal(found[0.5][:, 2], found[1.0][:, 2])


def test_a_task_that_diverges_counts_as_diverged() -> None:
    learner = make_learner()
    learner.method.backbone.head.log_std.data.fill_(200.0)  # type: ignore[union-attr, operator]
    make_trainer().test(learner, datamodule=make_data(), verbose=False)
    assert learner.summaries["paper"].diverged.tolist() == [1.0, 1.0, 1.0]
    assert all(math.isnan(value) for value in learner.summaries["paper"].mean)
    with pytest.raises(FloatingPointError, match=r"actions or rewards in Navigation are not finite in 3 of 3 tasks"):
        make_trainer().fit(learner, datamodule=make_data())


def test_the_tasks_of_two_processes_are_those_of_one() -> None:
    data = make_data(meta_batch_size=4)
    whole, parts = data.draw(0, "train", 4, 5, 8, 4), [data.draw(0, "train", 4, 5, first, 2) for first in (8, 10)]
    assert torch.equal(torch.cat([part.task for part in parts]), whole.task)
    noise = torch.cat([part.noise.normal(1, (3,)) for part in parts])
    assert torch.equal(noise, whole.noise.normal(1, (3,)))


def test_paths_before_and_after_adapting_are_drawn() -> None:
    learner, data = make_learner(), make_data()
    make_trainer().test(learner, datamodule=data, verbose=False)
    (figure,) = learner.own_figures(data.evaluation_sets("test")[0], "title").values()
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 4
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [  # type: ignore[union-attr]
        "before adapting", "after 1 step", "after 2 steps", "goal",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"curvature": 0.0, "discount": 1.5}, r"curvature is 0\.0; it must be > 0 and <= 1; discount is 1\.5"),
        (
            {"method": PrototypicalNetworks(torch.nn.Identity(), Classification())},
            r"PrototypicalNetworks has no `start` and `step`, so it cannot act between two inner steps",
        ),
        (
            {"method": MAML(torch.nn.Linear(2, 2), Regression(), 0.1, 1, "mean")},
            r"the objective is Regression; a policy needs mamllit\.rl\.PolicyGradient",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], text: str) -> None:
    method = MAML(GaussianPolicy(2, 2), PolicyGradient(), 0.1, 1, "mean")
    with pytest.raises(ValueError, match=text):
        MetaPolicy(**{"method": method, **changes})


def test_what_is_refused_of_the_data() -> None:
    with pytest.raises(TypeError, match=r"acts in the world of a ControlDataModule, but the Trainer has SineDataModule"):
        make_trainer().fit(make_learner(), datamodule=make_sine_data())
    wide = MetaPolicy(MAML(GaussianPolicy(4, 2), PolicyGradient(), 0.1, 1, "mean"))
    with pytest.raises(ValueError, match=r"the policy has observations: 4, but Navigation has 2; give the policy the world's"):
        make_trainer().fit(wide, datamodule=make_data())
    dice = MetaPolicy(MAML(GaussianPolicy(2, 2), PolicyGradient("dice"), 0.1, 1, "mean"))
    with pytest.raises(
        ValueError, match=r"budget is 'steps', which puts several trajectories into a row, and DiCE's weights are"
    ):
        make_trainer().fit(dice, datamodule=make_data(budget="steps"))
    for changes, text in (
        ({"test_shots": [0]}, r"test_shots is \[0\]; it needs at least one number of trajectories >= 1"),
        ({"standard_episodes": 1}, r"standard_episodes is 1; it must be >= 2"),
        ({"budget": "time"}, r"budget is 'time'; it must be one of \['trajectories', 'steps'\]"),
        (
            {"budget": "steps", "world": Tabular(), "protocols": ["standard"]},
            r"budget is 'steps', but Tabular cannot restart its trajectories one by one",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            make_data(**changes)


def test_a_gradient_that_is_not_finite_stops_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner()
    before = weights(learner)
    spoilt = [torch.full_like(value, math.nan) for value in learner.parameters()]
    monkeypatch.setattr("mamllit.engine.policy_step.PolicyStep.gradient", lambda step: (torch.tensor(1.0), spoilt))
    with pytest.raises(FloatingPointError, match=r"the meta-gradient of step 1 is not finite, but the returns are"):
        make_trainer().fit(learner, datamodule=make_data())
    assert torch.equal(weights(learner), before)


@pytest.mark.slow
def test_twenty_steps_of_meta_training_adapt_in_one_gradient_step() -> None:
    """2D navigation from -40 to better than -16 after one step (standing still: -40)."""
    torch.manual_seed(0)
    method = MAML(GaussianPolicy(2, 2), PolicyGradient(), 0.1, 1, "mean")
    learner = MetaPolicy(method, lambda params: TrustRegion(params, max_kl=0.01), curvature=0.1, eval_steps=1)
    data = ControlDataModule(Navigation(), seed=0, protocols=["paper"])
    make_trainer(20).fit(learner, datamodule=data)
    make_trainer().test(learner, datamodule=data, verbose=False)
    before, after = learner.summaries["paper"].mean.tolist()
    assert before < -30
    assert after > -16


def test_a_policy_that_ignores_its_observations_scores_the_landmarks() -> None:
    """By the whole test on the paper's 40 goals: standing still -40.08; noise of sigma 1 on the spot, clipped, worked out by
    NumPy; and a gradient step of length 0 changes nothing but the noise."""
    still, restless = (make_learner(inner_lr=0.0, eval_steps=1) for _ in range(2))
    for learner, log_std in ((still, -20.0), (restless, 0.0)):
        head = learner.method.backbone.head
        torch.nn.init.zeros_(head.mean.weight)
        torch.nn.init.constant_(head.log_std, log_std)
        data = ControlDataModule(Navigation(), test_shots=[5], protocols=["paper"], seed=0)
        make_trainer().test(learner, datamodule=data, verbose=False)
    assert still.summaries["paper"].mean.tolist() == pytest.approx([-40.0823] * 2, abs=1e-3)
    random, goals = np.random.default_rng(0), Navigation().paper_tasks().double().numpy()
    path = 0.1 * random.normal(size=(500, 1, 100, 2)).clip(-1, 1).cumsum(2)
    expected = -np.linalg.norm(path - goals[:, None], axis=-1).sum(-1).mean()
    assert restless.summaries["paper"].mean.tolist() == pytest.approx([expected] * 2, abs=4)
