"""The alarm for collapsed variances rings when it should, once."""

import warnings
from typing import Any

import lightning as L
import pytest
import torch

from mamllit.backbones import MLP
from mamllit.callbacks import CollapseAlarm
from mamllit.data import SineLineDataModule
from mamllit.methods import MAML, PLATIPUS, Method
from mamllit.objectives import Regression
from mamllit.systems import MetaLearner


def fit(method: Method, alarm: CollapseAlarm, tmp_path: Any) -> None:
    data = SineLineDataModule(meta_batch_size=2, val_episodes=2, queries=5, standard_queries=5, seed=0)
    learner = MetaLearner(method, eval_steps=1, compile=False)
    trainer = L.Trainer(
        max_steps=4, val_check_interval=2, max_epochs=-1, check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
        default_root_dir=tmp_path, callbacks=[alarm], accelerator="cpu",
    )  # fmt: skip
    trainer.fit(learner, data)


def platipus(log_std: float = -4.0, lost: float = 0.0) -> PLATIPUS:
    method = PLATIPUS(MLP(1, [4], 1), Regression(), 0.01, 1, "mean", 0.01, train_models=1, test_models=2, log_std=log_std)
    with torch.no_grad():
        for value in method.log_sigma:
            value.sub_(lost)
    return method


@pytest.mark.filterwarnings("ignore")
def test_collapsed_variances_are_told_once(tmp_path: Any) -> None:
    with pytest.warns(UserWarning, match=r"'sigma' have collapsed to .* after 2 steps: .* raise kl_weight") as caught:
        fit(platipus(lost=20.0), CollapseAlarm(), tmp_path)
    assert sum("collapsed" in str(entry.message) for entry in caught) == 1


@pytest.mark.filterwarnings("ignore")
def test_they_can_end_the_run(tmp_path: Any) -> None:
    with pytest.raises(RuntimeError, match=r"'sigma' have collapsed to"):
        fit(platipus(lost=20.0), CollapseAlarm(fail=True), tmp_path)


def test_sound_variances_are_not(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsed")
        fit(platipus(), CollapseAlarm(), tmp_path)


def test_a_method_without_variances_is_refused(tmp_path: Any) -> None:
    with pytest.raises(TypeError, match=r"CollapseAlarm watches methods with `spread\(\)`, which MAML lacks; leave it out"):
        fit(MAML(MLP(1, [4], 1), Regression(), 0.01, 1, "mean"), CollapseAlarm(), tmp_path)


def test_a_bound_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below is 0; it must be > 0"):
        CollapseAlarm(below=0)
