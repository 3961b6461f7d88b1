"""The progress bar under a real Trainer, with a stand-in for tqdm that remembers what it was told."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from mamllit.backbones import MLP
from mamllit.callbacks import StepProgressBar, progress
from mamllit.data import SineDataModule
from mamllit.methods import MAML
from mamllit.objectives import Regression
from mamllit.systems import MetaLearner
from mamllit.systems.reading import readings_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


class Bar:
    """What StepProgressBar uses of tqdm."""

    def __init__(self, desc: str, total: int | None, initial: int, disable: bool, **kwargs: Any) -> None:
        self.desc, self.total, self.n, self.disable = desc, total, initial, disable
        self.updates: list[int] = []
        self.values: dict[str, str] = {}
        self.closed = False

    def set_postfix(self, values: dict[str, str], refresh: bool) -> None:
        self.values = values

    def update(self, n: int) -> None:
        self.n += n
        self.updates.append(self.n)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """All bars that were opened."""
    opened: list[Bar] = []

    def tqdm(**kwargs: Any) -> Bar:
        opened.append(Bar(**kwargs))
        return opened[-1]

    monkeypatch.setattr(progress, "tqdm", tqdm)
    return opened


class Stop(L.Callback):
    """Raises `error` after step `at`."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.at:
            raise self.error


def fit(max_steps: int, *callbacks: L.Callback, ckpt_path: Path | None = None) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, inference_mode=False,
        max_epochs=-1, max_steps=max_steps, val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )  # fmt: skip
    torch.manual_seed(0)
    learner = MetaLearner(MAML(MLP(1, [4], 1), Regression(), 0.01, 1, "sum_over_shots"), log_every=2, eval_steps=1)
    data = SineDataModule(meta_batch_size=2, seed=0, val_episodes=2)
    trainer.fit(learner, data, ckpt_path=ckpt_path)
    return trainer


def test_counts_the_meta_updates_to_max_steps(bars: list[Bar]) -> None:
    fit(8, StepProgressBar(refresh=3))
    (bar,) = bars
    assert (bar.desc, bar.total, bar.disable) == ("meta-training", 8, False)
    assert bar.updates == [3, 6, 8]
    assert bar.closed


def test_shows_the_last_training_values_and_the_last_validation(bars: list[Bar]) -> None:
    trainer = fit(8, StepProgressBar(refresh=3))
    assert set(bars[0].values) == {"train/meta_loss", "train/mse", "val/mse"}
    for name, text in bars[0].values.items():
        assert text == f"{float(trainer.callback_metrics[name]):.4g}"


def test_a_resumed_run_begins_where_it_had_come_to(bars: list[Bar], tmp_path: Path) -> None:
    fit(5, StepProgressBar()).save_checkpoint(tmp_path / "at_5.ckpt")
    fit(7, StepProgressBar(refresh=1), ckpt_path=tmp_path / "at_5.ckpt")
    assert bars[1].total == 7
    assert bars[1].updates == [6, 7, 7]
    assert all(bar.closed for bar in bars)


def test_a_run_without_max_steps_has_no_total(bars: list[Bar]) -> None:
    with pytest.raises(RuntimeError, match="enough"):
        fit(-1, StepProgressBar(), Stop(2, RuntimeError("enough")))
    assert bars[0].total is None


@pytest.mark.parametrize("error", [RuntimeError("it broke"), KeyboardInterrupt()])
def test_closes_on_an_exception(bars: list[Bar], error: BaseException) -> None:
    callback = StepProgressBar(refresh=100)
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        fit(8, callback, Stop(5, error))
    (bar,) = bars
    assert bar.closed
    assert bar.n == 5  # the count is right although no refresh was due
    assert callback._bar is None


def test_zero_and_disable_show_no_bar(bars: list[Bar]) -> None:
    fit(2, StepProgressBar(refresh=0))
    disabled = StepProgressBar(refresh=1)
    disabled.disable()
    fit(2, disabled)
    assert [bar.disable for bar in bars] == [True, True]
    assert all(bar.closed for bar in bars)


def test_enable_after_disable_shows_the_bar_again(bars: list[Bar]) -> None:
    callback, none = StepProgressBar(refresh=1), StepProgressBar(refresh=0)
    for bar in (callback, none):
        bar.disable()
        bar.enable()
    fit(2, callback)
    fit(2, none)
    assert [bar.disable for bar in bars] == [False, True]


def test_a_negative_refresh_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^refresh is -1; it must be >= 0 \(0: no bar\)$"):
        StepProgressBar(refresh=-1)


def test_a_test_and_a_validation_have_a_bar_and_those_of_a_fit_none(bars: list[Bar]) -> None:
    trainer = fit(4, StepProgressBar())
    data = SineDataModule(meta_batch_size=2, seed=0, val_episodes=6, test_episodes=6, eval_batch_size=3, test_shots=[5])
    for evaluate in (trainer.test, trainer.validate):
        evaluate(trainer.lightning_module, datamodule=data, verbose=False)
    assert [(bar.desc, bar.total, bar.n, bar.closed) for bar in bars] == [
        ("meta-training", 4, 4, True),
        ("meta-test", 4, 4, True),  # two protocols of two batches
        ("meta-val", 2, 2, True),
    ]


def test_a_long_test_says_how_long_it_will_take(
    bars: list[Bar], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An episode of "paper" costs 3 x 1 x 5 + 2 x 5 = 25, of "standard" 15 + 2 x 100 = 215. The first batch takes 600 s and
    counts for nothing; two more of "paper" take 6 s, so that one of it and four of "standard" take 3 (1 + 4 x 8.6) = 106 s."""
    now = iter([600.0, 603.0, 606.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    callback = StepProgressBar()
    learner = MetaLearner(MAML(MLP(1, [4], 1), Regression(), 0.01, 1, "sum_over_shots"), eval_steps=1)
    data = SineDataModule(seed=0, test_episodes=12, eval_batch_size=3, test_shots=[5])
    learner.evaluation_sets = data.evaluation_sets("test")
    learner.readings = readings_of(learner.evaluation_sets, (None,))
    trainer: Any = SimpleNamespace(num_test_batches=[4, 4], is_global_zero=True, world_size=1, datamodule=data)
    callback.on_test_start(trainer, learner)
    said = []
    for batch in range(5):
        callback.on_test_batch_end(trainer, learner, None, None, batch)
        said.append(capsys.readouterr().out)
    assert said == ["", "", "meta-test: 24 episodes, about 2 minutes left\n", "", ""]
    assert bars[0].n == 5


def test_a_short_test_says_nothing(bars: list[Bar], capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit(4, StepProgressBar())
    data = SineDataModule(meta_batch_size=2, seed=0, test_episodes=6, eval_batch_size=3, test_shots=[5])
    trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    assert bars[-1].n == 4 and "left" not in capsys.readouterr().out
