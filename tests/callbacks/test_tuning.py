"""The step size is tuned on meta-val and on nothing else."""

from typing import Any

import lightning as L
import pytest
import torch

from mamllit.backbones import MLP
from mamllit.callbacks import TunedStepSize
from mamllit.data import SineDataModule
from mamllit.engine.evaluation import evaluate
from mamllit.methods import FineTuning, JointTraining, MetaSGD
from mamllit.objectives import Regression
from mamllit.systems import MetaLearner

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]
CANDIDATES = (1e-6, 0.02, 1000.0)


def run_test(method: Any, tuned: TunedStepSize) -> SineDataModule:
    data = SineDataModule(seed=0, val_episodes=20, test_episodes=4, test_shots=[10])
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, inference_mode=False,
        callbacks=[tuned],
    )  # fmt: skip
    trainer.test(MetaLearner(method, eval_steps=2), data, verbose=False)
    return data


def test_the_best_candidate_on_meta_val_is_taken_and_all_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    method, tuned = JointTraining(MLP(1, [40, 40], 1), Regression(), 0.5, 1, "mean"), TunedStepSize(CANDIDATES, steps=3)
    data = run_test(method, tuned)
    assert method.inner_lr == 0.02
    (val,) = data.evaluation_sets("val")
    for candidate in CANDIDATES[:2]:
        method.inner_lr = candidate
        expected = evaluate(method, data.episodes(val).episodes, 3)[:, 3].mean()
        assert tuned.values[candidate] == pytest.approx(expected.item(), rel=1e-5)
    assert "inner_lr 0.02, tuned on meta-val (mse after 3 steps: 1e-06: " in capsys.readouterr().out


def test_where_all_diverge_the_smallest_is_taken() -> None:
    method = JointTraining(MLP(1, [40, 40], 1), Regression(), 0.5, 1, "mean")
    run_test(method, TunedStepSize((1e30, 1e20), steps=5))
    assert method.inner_lr == 1e20


def test_a_method_without_a_step_size_is_refused() -> None:
    method = MetaSGD(MLP(1, [4], 1), Regression(), "mean")
    with pytest.raises(ValueError, match="MetaSGD has no scalar inner_lr to tune; leave TunedStepSize out"):
        run_test(method, TunedStepSize())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"candidates": ()}, "candidates is empty; name at least one step size"),
        ({"steps": 0}, "steps is 0; it must be >= 1"),
        ({"episodes": 0}, "episodes is 0; it must be >= 1"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TunedStepSize(**wrong)


def test_step_size_and_decay_are_tuned_together(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    method = FineTuning(MLP(1, [40, 40], 1), Regression(), 0.5, 1)
    tuned = TunedStepSize((1e-6, 0.02), steps=3, decays=(0.0, 5.0), episodes=6)
    data = run_test(method, tuned)
    (val,) = data.evaluation_sets("val")
    for (rate, decay), value in tuned.values.items():
        method.inner_lr, method.decay = rate, decay
        assert value == pytest.approx(float(evaluate(method, data.episodes(val, 0, 6).episodes, 3)[:, 3].mean()), rel=1e-5)
    assert len(tuned.values) == 4
    assert "inner_lr 0.02 with decay 0, tuned on meta-val (mse after 3 steps: 1e-06 with decay 0: " in capsys.readouterr().out
    without = JointTraining(MLP(1, [4], 1), Regression(), 0.5, 1, "mean")
    with pytest.raises(ValueError, match="JointTraining has no scalar decay to tune; leave the decays of TunedStepSize out"):
        run_test(without, tuned)
