"""What a run needs so that nothing is lost, put together for the command line."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from mamllit.callbacks.start_from import StartFrom
from mamllit.runs.checkpoint_io import DurableCheckpointIO
from mamllit.runs.logs import keep_going
from mamllit.runs.stopping import CleanStop, last_checkpoint, own_checkpoints


def plugins(asked: Any, trusted: Sequence[str] = ()) -> list[Any]:
    """The Trainer's plugins: those asked for and our checkpoints; under Slurm without Lightning's own requeueing, which saves
    in the middle of a step."""
    given = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else [] if asked is None else [asked]
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [*given, *slurm, DurableCheckpointIO(trusted)]


def equip(trainer: L.Trainer, init_from: str | None = None, last: ModelCheckpoint | None = None) -> None:
    """Let a trainer stop cleanly, go on where a logger fails, and begin with the weights of a trained checkpoint."""
    trainer.callbacks[:0] = [CleanStop(last), StartFrom(init_from)]  # type: ignore[attr-defined]
    keep_going([logger for logger in trainer.loggers if isinstance(logger, Logger)])


def refuse_strategy(strategy: Any) -> None:
    """Refuse forked and spawned processes, which keep what they train: the first would save and test an untrained module.

    Raises:
        ValueError: for a strategy of that kind.
    """
    words = strategy if isinstance(strategy, str) else str(getattr(strategy, "init_args", {}).get("start_method") or "")
    if any(word in words for word in ("fork", "spawn", "notebook")):
        raise ValueError(
            f"trainer.strategy is {words!r}: forked or spawned processes keep the weights that they train, and this one "
            "would save and test untrained ones; use --trainer.strategy ddp"
        )


def refuse_intervals(trainer: Any) -> None:
    """Refuse intervals of no steps, which Lightning takes, and divides by when the first step is done.

    Raises:
        ValueError: for such an interval in the Trainer's settings.
    """
    for name in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches"):
        value = trainer.get(name)
        if isinstance(value, int | float) and value <= 0:
            raise ValueError(f"trainer.{name} is {value}; it must be greater than 0")


def check_written(trainer: L.Trainer) -> None:
    """Check that the weights were saved; to be called at the end of a run.

    Raises:
        OSError: where the last or the best checkpoint is missing because it could not be written.
    """
    io = trainer.strategy.checkpoint_io
    if not isinstance(io, DurableCheckpointIO) or not trainer.is_global_zero:
        return
    needed = [str(last_checkpoint(trainer))]
    needed += [c.best_model_path for c in own_checkpoints(trainer) if c.monitor]
    if failed := "; ".join(f"{path} ({io.failed[path]})" for path in needed if path in io.failed):
        raise OSError(f"the run finished, but its weights could not be saved: {failed}. The results above are valid")
