"""A resumed run goes on with the optimiser's settings that are asked for now, or says which it cannot take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from short_fits import make_data, make_method, make_trainer
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from mamllit.systems import MetaLearner, resuming

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]
Make = Callable[[Any], Any]


class Begin(L.Callback):
    """Options of the first parameter group when training begins, and what a callback of the user's own makes of lr."""

    def __init__(self, lr: float | None = None) -> None:
        self.group: dict[str, Any] = {}
        self.lr = lr

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        (group,) = trainer.optimizers[0].param_groups
        if self.lr is not None:
            group["lr"] = self.lr
        self.group = self.group or dict(group)


def fit(
    steps: int, optimizer: Make, scheduler: Make | None = None, begin: Begin | None = None, ckpt_path: Any = None
) -> L.Trainer:
    trainer = make_trainer(steps, callbacks=[begin or Begin()])
    learner = MetaLearner(make_method(), optimizer, scheduler, compile=False)
    trainer.fit(learner, datamodule=make_data(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(resuming, "rank_zero_info", lines.append)
    return lines


def resumed(tmp_path: Path, first: tuple[Make, ...], second: tuple[Make, ...]) -> dict[str, Any]:
    """The group with which a run of 3 steps goes on."""
    fit(3, *first).save_checkpoint(tmp_path / "3.ckpt")
    begin = Begin()
    fit(4, *second, begin=begin, ckpt_path=tmp_path / "3.ckpt")
    return begin.group


def test_other_options_are_obeyed_and_said(tmp_path: Path, said: list[str]) -> None:
    group = resumed(
        tmp_path,
        (lambda p: Adam(p, lr=0.1),),
        (lambda p: Adam(p, lr=0.05, weight_decay=0.25, betas=(0.8, 0.99), foreach=False),),
    )
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.05, 0.25, (0.8, 0.99))
    assert said == [
        "resumed at step 3 with changed settings: lr 0.1 -> 0.05, betas [0.9, 0.999] -> [0.8, 0.99], weight_decay 0 -> 0.25"
    ]


def test_the_same_settings_touch_nothing(tmp_path: Path, said: list[str]) -> None:
    """A learning rate that a callback has set stays, as it does in an unbroken run."""
    fit(3, lambda p: SGD(p, lr=0.1), begin=Begin(lr=0.03)).save_checkpoint(tmp_path / "3.ckpt")
    begin = Begin()
    fit(4, lambda p: SGD(p, lr=0.1), begin=begin, ckpt_path=tmp_path / "3.ckpt")
    assert begin.group["lr"] == 0.03
    assert said == []


SCHEDULES: dict[str, tuple[Make, Make, str]] = {
    "T_max": (lambda o: CosineAnnealingLR(o, 10), lambda o: CosineAnnealingLR(o, 20), "T_max 10 -> 20"),
    "longer": (lambda o: OneCycleLR(o, 0.5, 5), lambda o: OneCycleLR(o, 0.5, 9), "total_steps 5 -> 9"),
    "max_lr": (lambda o: OneCycleLR(o, 0.5, 9), lambda o: OneCycleLR(o, 0.25, 9), "max_lr 0.5 -> 0.25"),
    "gamma": (lambda o: StepLR(o, 2, 0.1), lambda o: StepLR(o, 2, 0.5), "gamma 0.1 -> 0.5"),
    "inner": (
        lambda o: SequentialLR(o, [StepLR(o, 1, 0.5), CosineAnnealingLR(o, 10)], [2]),
        lambda o: SequentialLR(o, [StepLR(o, 1, 0.5), CosineAnnealingLR(o, 30)], [2]),
        "'T_max': 30",
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step", "ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
def test_another_schedule_is_followed_from_its_beginning(tmp_path: Path, said: list[str], name: str) -> None:
    before, now, message = SCHEDULES[name]
    group = resumed(tmp_path, (lambda p: SGD(p, lr=0.1, momentum=0.9), before), (lambda p: SGD(p, lr=0.1, momentum=0.9), now))
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    scheduler = now(optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert group["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    assert group["momentum"] == pytest.approx(optimizer.param_groups[0]["momentum"], rel=1e-9)
    assert message in said[0]


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            (lambda p: Adam(p, lr=0.1),),
            (lambda p: SGD(p, lr=0.1, momentum=0.9),),
            r"^optimizer is torch\.optim\.sgd\.SGD, but the run to resume has torch\.optim\.adam\.Adam; resume with",
        ),
        (
            (lambda p: SGD(p, lr=0.1),),
            (lambda p: SGD(p, lr=0.1), lambda o: StepLR(o, 2)),
            r"^lr_scheduler is torch\.optim\.lr_scheduler\.StepLR, but the run to resume has None; .* `fit --init_from`$",
        ),
        (
            (lambda p: SGD(p, lr=0.1),),
            (lambda p: SGD([{"params": [v]} for group in p for v in group["params"]], lr=0.1),),
            r"^the optimiser's groups have \[1, 1, 1, 1, 1, 1\] parameters, and those of the run to resume \[6\]; resume with",
        ),
        (
            (lambda p: SGD(p, lr=0.1), lambda o: OneCycleLR(o, 0.5, 9)),
            (lambda p: SGD(p, lr=0.1), lambda o: OneCycleLR(o, 0.5, 2)),
            r"^the new schedule ends before step 3 of this run: Tried to step 3 times",
        ),
    ],
)
def test_what_a_run_cannot_take_is_refused_before_its_first_step(
    tmp_path: Path, before: tuple[Make, ...], now: tuple[Make, ...], message: str
) -> None:
    fit(3, *before).save_checkpoint(tmp_path / "3.ckpt")
    begin = Begin()
    with pytest.raises(ValueError, match=message):
        fit(4, *now, begin=begin, ckpt_path=tmp_path / "3.ckpt")
    assert begin.group == {}


def test_a_plateau_scheduler_with_other_settings_is_refused() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    known = resuming.optimizer_settings(optimizer)
    one, other = (known | resuming.schedule_settings(optimizer, ReduceLROnPlateau(optimizer, patience=p)) for p in (1, 2))
    resuming.check_resumable(one, one)
    with pytest.raises(ValueError, match=r"^a plateau scheduler cannot be replayed with other settings \(patience 1 -> 2\)"):
        resuming.check_resumable(one, other)


def test_a_checkpoint_from_before_this_record_names_another_optimiser(tmp_path: Path, said: list[str]) -> None:
    fit(3, lambda p: Adam(p, lr=0.1)).save_checkpoint(tmp_path / "3.ckpt")
    old = torch.load(tmp_path / "3.ckpt", weights_only=True)
    del old["optimizer_settings"]
    torch.save(old, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"^the checkpoint's optimiser has no dampening, momentum, nesterov: it is not"):
        fit(4, lambda p: SGD(p, lr=0.1), ckpt_path=tmp_path / "old.ckpt")
    assert fit(4, lambda p: Adam(p, lr=0.1), ckpt_path=tmp_path / "old.ckpt").global_step == 4
    assert said == []
