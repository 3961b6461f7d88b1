"""A progress bar that counts meta-updates, and costs next to nothing in a step that takes a millisecond."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm  # type: ignore[import-untyped]


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

    on_exception = lambda self, trainer, pl_module, exception: self.on_train_end(trainer, pl_module)  # noqa: E731
