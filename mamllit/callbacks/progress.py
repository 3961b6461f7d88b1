"""A progress bar that counts meta-updates, and costs next to nothing in a step that takes a millisecond."""

import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm  # type: ignore[import-untyped]

from mamllit.data import EpisodicDataModule, EvaluationSet
from mamllit.systems.episodic import EpisodicSystem

LONG = 5.0  # seconds of batches after which a test says how long it will take


class StepProgressBar(ProgressBar):
    """Meta-updates done of those asked for, with the last logged training values and the last validation.

    Args:
        refresh: steps between two updates of the bar; 0 for no bar.

    Raises:
        ValueError: for a negative number.
    """

    def __init__(self, refresh: int = 50) -> None:
        super().__init__()
        if refresh < 0:
            raise ValueError(f"refresh is {refresh}; it must be >= 0 (0: no bar)")
        self.refresh = refresh
        self._bar: tqdm | None = None
        self._left: list[int] = []  # batches of each evaluation set
        self._began = 0.0
        self._enabled = refresh > 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = self.refresh > 0

    def _open(self, label: str, total: int | None, done: int = 0) -> tqdm:
        interval = 0.1 if sys.stderr.isatty() else 30.0  # a log file wants a line now and then, not ten a second
        return tqdm(desc=label, total=total, initial=done, disable=not self._enabled, mininterval=interval, dynamic_ncols=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._bar = self._open("meta-training", total, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._bar is not None and self._enabled and trainer.global_step % self.refresh == 0:
            self._update(trainer)

    def _update(self, trainer: L.Trainer) -> None:
        assert self._bar is not None
        values = {name: f"{float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()}
        self._bar.set_postfix(values, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._update(trainer)
            self._bar.close()
            self._bar = None

    # ---- a test, and a validation by itself; those of a fit are short ----------------------------------------------

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open_evaluation("meta-test", trainer, "test", trainer.num_test_batches)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open_evaluation("meta-val", trainer, "val", trainer.num_val_batches)

    def _open_evaluation(self, label: str, trainer: L.Trainer, split: Literal["val", "test"], most: Sequence[float]) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._left, self._began = [], 0.0
        if isinstance(data, EpisodicDataModule):  # Lightning does not know how long its loaders are
            shares = [-(-evaluation.episodes // trainer.world_size) for evaluation in data.evaluation_sets(split)]
            batches = [-(-share // data.eval_batch_size) for share in shares]
            self._left = [int(min(pair)) for pair in zip(batches, most, strict=False)]
        self._bar = self._open(label, sum(self._left) or None)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is None:
            return
        self._bar.update(1)
        if self._bar.n == 1:  # the first batch also reads data and compiles
            self._began = time.monotonic()
        elif self._began and self._enabled and trainer.is_global_zero and isinstance(pl_module, EpisodicSystem):
            seconds = time.monotonic() - self._began
            if seconds >= LONG:
                self._announce(pl_module, seconds)
                self._began = 0.0  # said once

    def _announce(self, learner: EpisodicSystem, seconds: float) -> None:
        """How long it will still take, where all batches but the first took `seconds` so far; those of the other sets take
        longer as their examples are more."""
        sets = zip(self._left, learner.evaluation_sets, strict=False)
        work = [_examples(learner, evaluation) for count, evaluation in sets for _ in range(count)]
        assert self._bar is not None
        if not (measured := sum(work[1 : self._bar.n])):
            return
        left = seconds * sum(work[self._bar.n :]) / measured
        if left >= LONG:
            episodes = sum(evaluation.episodes for evaluation in learner.evaluation_sets)
            about = f"{left / 60:.0f} minutes" if left >= 90 else f"{left:.0f} s"
            print(f"{self._bar.desc}: {episodes:,} episodes, about {about} left")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_batch_end(trainer, *args, **kwargs)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.on_train_end(trainer, pl_module)
        else:
            self.on_test_epoch_end(trainer, pl_module)


def _examples(learner: EpisodicSystem, evaluation: EvaluationSet) -> int:
    """Forward passes through the network that an episode takes, in examples per class: an inner step counts as three."""
    queries = sum(
        evaluation.queries + (evaluation.shots if reading.batch_norm == "inductive" else 0)
        for reading in learner.readings
        if reading.evaluation == evaluation
    )
    return 3 * learner.eval_steps * evaluation.shots + (learner.eval_steps + 1) * queries
