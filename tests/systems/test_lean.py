"""The short cut through Lightning's loop: it leaves the same state behind, and only the plain case takes it."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from mamllit.backbones import MLP
from mamllit.data import SineDataModule
from mamllit.methods import MAML
from mamllit.objectives import Regression
from mamllit.systems import MetaLearner, lean


class Watcher(L.Callback):
    """Writes down what the callbacks of a step are given and see, and logs a value of its own."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append(("start", batch_idx, batch.number.tolist(), trainer.global_step))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [value.grad.tolist() for value in pl_module.parameters() if value.grad is not None]
        self.seen.append(("before", type(optimizer).__name__, gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % 5 == 1:
            self.log("watched", float(batch_idx))
        shown = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append(("end", float(outputs["loss"]), batch_idx, trainer.global_step, shown))


def learner(kind: type[MetaLearner] = MetaLearner, **settings: Any) -> MetaLearner:
    torch.manual_seed(3)
    return kind(MAML(MLP(1, [4], 1), Regression(), 0.01, 1, "mean"), log_every=4, **settings)


def fit(path: Path, model: MetaLearner, ckpt_path: Path | None = None, steps: int = 12, **trainer: Any) -> L.Trainer:
    keep = ModelCheckpoint(path, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = {"callbacks": [keep], **trainer}
    made = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=CSVLogger(path, name="csv", version=0),
        enable_progress_bar=False, enable_model_summary=False,
        val_check_interval=5, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        inference_mode=False, default_root_dir=path, **trainer,
    )  # fmt: skip
    made.fit(model, SineDataModule(meta_batch_size=2, seed=1, val_episodes=4), ckpt_path=ckpt_path, weights_only=False)
    return made


def took(trainer: L.Trainer) -> bool:
    return "advance" in vars(trainer.fit_loop.epoch_loop)


def same(a: Any, b: Any) -> None:
    """Equal to the last bit, however nested."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            same(left, right)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def checkpoint(path: Path) -> dict[str, Any]:
    found = torch.load(path, weights_only=False)
    found["callbacks"] = None  # holds paths
    return found


@pytest.mark.parametrize("scheduled", [False, True])
def test_the_state_the_logs_and_what_callbacks_see_are_lightning_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduled: bool
) -> None:
    settings: dict[str, Any] = {"lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2)} if scheduled else {}
    seen = []
    for name, versions in (("lean", lean.VERSIONS), ("ordinary", ("0.",))):
        monkeypatch.setattr(lean, "VERSIONS", versions)
        path, watcher = tmp_path / name, Watcher()
        callbacks = [watcher, LearningRateMonitor(), ModelCheckpoint(path, "{step}", every_n_train_steps=3, save_top_k=-1)]
        assert took(fit(path, learner(**settings), callbacks=callbacks)) == (name == "lean")
        seen.append(watcher.seen)
    same(*seen)
    kept = sorted(path.name for path in (tmp_path / "lean").glob("*.ckpt"))
    assert kept == sorted(path.name for path in (tmp_path / "ordinary").glob("*.ckpt"))
    assert len(kept) == 4
    for name in kept:
        same(checkpoint(tmp_path / "lean" / name), checkpoint(tmp_path / "ordinary" / name))
    assert (tmp_path / "lean/csv/version_0/metrics.csv").read_text() == (
        tmp_path / "ordinary/csv/version_0/metrics.csv"
    ).read_text()


def test_a_resumed_run_ends_where_an_ordinary_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "a", learner())
    resumed = fit(tmp_path / "b", learner(), tmp_path / "a/step=6.ckpt")
    assert took(resumed)
    same(checkpoint(tmp_path / "a/step=12.ckpt"), checkpoint(tmp_path / "b/step=12.ckpt"))
    monkeypatch.setattr(lean, "VERSIONS", ("0.",))
    assert not took(fit(tmp_path / "c", learner(), tmp_path / "a/step=6.ckpt"))
    same(checkpoint(tmp_path / "a/step=12.ckpt"), checkpoint(tmp_path / "c/step=12.ckpt"))


class Changed(MetaLearner):
    pass


class Zeroed(L.Callback):
    def on_before_zero_grad(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "settings", "trainer"),
    [
        (Changed, {}, {}),
        (MetaLearner, {"optimizer": lambda params: torch.optim.LBFGS(params)}, {}),
        (MetaLearner, {}, {"gradient_clip_val": 1.0}),
        (MetaLearner, {}, {"precision": "bf16-mixed"}),
        (MetaLearner, {}, {"profiler": SimpleProfiler()}),
        (MetaLearner, {}, {"callbacks": [Zeroed()]}),
    ],
    ids=["subclass", "lbfgs", "clipping", "mixed", "profiler", "callback"],
)
def test_what_is_not_plain_takes_lightning_s_way(
    tmp_path: Path, kind: type[MetaLearner], settings: dict[str, Any], trainer: dict[str, Any]
) -> None:
    assert not took(fit(tmp_path, learner(kind, **settings), steps=2, **trainer))


def test_a_hook_on_a_parameter_is_called(tmp_path: Path) -> None:
    model, calls = learner(), []
    for value in model.parameters():
        value.register_post_accumulate_grad_hook(lambda value: calls.append(value))
    assert not took(fit(tmp_path, model, steps=2))
    assert len(calls) == 2 * len(list(model.parameters()))


def test_accumulation_is_lightning_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "a", learner(), accumulate_grad_batches=2, steps=6)
    monkeypatch.setattr(lean, "VERSIONS", ("0.",))
    fit(tmp_path / "b", learner(), accumulate_grad_batches=2, steps=6)
    same(checkpoint(tmp_path / "a/step=6.ckpt"), checkpoint(tmp_path / "b/step=6.ckpt"))


def test_a_fit_without_gradients_is_lightning_s(tmp_path: Path) -> None:
    """Weight averaging runs its last epoch so, by this flag of Lightning's."""

    class Averaging(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward = True

    model = learner()
    before = [value.detach().clone() for value in model.parameters()]
    assert took(fit(tmp_path, model, steps=4, callbacks=[Averaging()]))
    same(before, [value.detach() for value in model.parameters()])


def test_the_short_cut_ends_with_its_fit(tmp_path: Path) -> None:
    """The trainer's next fit, of a learner of another kind, takes Lightning's way."""
    trainer = fit(tmp_path, learner(), steps=3)
    assert took(trainer)
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(learner(Changed), SineDataModule(meta_batch_size=2, seed=1, val_episodes=4))
    assert not took(trainer)
