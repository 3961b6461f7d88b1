"""Sharpness is the largest eigenvalue of an inner step, and the alarm for inner loops that overshoot rings once."""

import csv
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from mamllit.backbones import MLP
from mamllit.callbacks import SharpnessAlarm
from mamllit.core.episode import Examples
from mamllit.data import SineDataModule
from mamllit.engine.sharpness import sharpness
from mamllit.methods import IMAML, MAML, MetaSGD, Method, PrototypicalNetworks
from mamllit.objectives import Classification, Regression
from mamllit.systems import MetaLearner

RATE = 0.3


def line() -> MLP:
    return MLP(2, [], 1)


METHODS: dict[str, tuple[Method, float]] = {  # and what it adds to inner_lr times the Hessian's largest eigenvalue
    "maml": (MAML(line(), Regression(), RATE, 1, "mean"), 0.0),
    "first order": (MAML(line(), Regression(), RATE, 1, "mean", first_order=True), 0.0),
    "learned rates": (MetaSGD(line(), Regression(), "mean", inner_lr=(RATE, RATE)), 0.0),
    "proximal": (IMAML(line(), Regression(), RATE, 1, "mean", proximity=2.0), 2.0 * RATE),
}


@pytest.mark.parametrize("name", METHODS)
def test_sharpness_is_the_largest_eigenvalue_of_the_step(name: str) -> None:
    """A linear model's mean squared error has the Hessian 2 / n X'X, whatever its weights."""
    method, more = METHODS[name]
    x, y = torch.randn(10, 2), torch.randn(10, 1)
    inputs = torch.cat([x, torch.ones(10, 1)], 1).double()
    largest = torch.linalg.eigvalsh(2 / 10 * inputs.T @ inputs).max().item()
    assert sharpness(method, Examples(x, y), 60) == pytest.approx(RATE * largest + more, rel=1e-4)  # type: ignore[arg-type]


def fit(inner_lr: float, tmp_path: Path, method: Method | None = None) -> list[dict[str, str]]:
    data = SineDataModule(meta_batch_size=2, val_episodes=4, shots=5, queries=5, standard_queries=5, seed=0)
    learner = MetaLearner(method or MAML(MLP(1, [8], 1), Regression(), inner_lr, 1, "mean"), eval_steps=1, compile=False)
    trainer = L.Trainer(
        max_steps=4, val_check_interval=2, max_epochs=-1, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        logger=CSVLogger(tmp_path), enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        inference_mode=False, default_root_dir=tmp_path, callbacks=[SharpnessAlarm(tasks=3)], accelerator="cpu",
    )  # fmt: skip
    trainer.fit(learner, data)
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        return [row for row in csv.DictReader(file) if row.get("sharpness/median")]


@pytest.mark.filterwarnings("ignore")
def test_an_inner_loop_that_overshoots_is_told_once(tmp_path: Path) -> None:
    expected = r"the inner loop overshoots in [1-3] of 3 validation tasks after 2 steps: .* times too sharp .* smaller inner_lr"
    with pytest.warns(UserWarning, match=expected) as caught:
        rows = fit(5.0, tmp_path)
    assert sum("overshoots" in str(entry.message) for entry in caught) == 1
    assert len(rows) == 2
    assert 0 < float(rows[0]["sharpness/above_2"]) <= 1 and float(rows[0]["sharpness/largest"]) > 2


@pytest.mark.filterwarnings("ignore")
def test_one_that_does_not_is_only_logged(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*overshoots")
        rows = fit(0.001, tmp_path)
    assert [float(row["sharpness/above_2"]) for row in rows] == [0, 0]
    assert 0 < float(rows[0]["sharpness/median"]) <= float(rows[0]["sharpness/largest"]) < 2


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_inner_loop_is_refused(tmp_path: Path) -> None:
    message = "SharpnessAlarm watches inner loops on examples, and PrototypicalNetworks has none here; leave it out"
    learner: Any = MetaLearner(PrototypicalNetworks(torch.nn.Flatten(), Classification()), eval_steps=0, report_step=0)
    with pytest.raises(TypeError, match=message):
        SharpnessAlarm().on_fit_start(L.Trainer(logger=False, accelerator="cpu"), learner)
    with pytest.raises(ValueError, match="tasks is 0; it must be >= 1"):
        SharpnessAlarm(tasks=0)
