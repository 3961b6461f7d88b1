"""What a run needs so that nothing is lost, put together for the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info

from mamllit.callbacks.start_from import StartFrom
from mamllit.runs import durable
from mamllit.runs.checkpoint_io import DurableCheckpointIO, newest
from mamllit.runs.logs import keep_going
from mamllit.runs.stopping import CleanStop, last_checkpoint


def plugins(asked: Any) -> list[Any]:
    """The Trainer's plugins: those asked for and our checkpoints; under Slurm without Lightning's own requeueing, which saves
    in the middle of a step."""
    given = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else [] if asked is None else [asked]
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [*given, *slurm, DurableCheckpointIO()]


def equip(trainer: L.Trainer, init_from: str | None = None) -> None:
    """Let a trainer stop cleanly, go on where a logger fails, and begin with the weights of a trained checkpoint."""
    trainer.callbacks[:0] = [CleanStop(), StartFrom(init_from)]  # type: ignore[attr-defined]
    keep_going([logger for logger in trainer.loggers if isinstance(logger, Logger)])


def starting_point(run: Path, asked: str | None, max_steps: int) -> str | None:
    """The checkpoint that a fit begins with: for "last" the newest whole one in `run`, or none where there is none yet.

    Raises:
        OSError: where the run directory cannot be written.
    """
    if problem := durable.refusal(run):
        raise OSError(
            f"the run directory {run} cannot be written ({problem}): make room or make it writable, or take another with "
            "--trainer.default_root_dir"
        )
    if asked != "last":
        return asked
    found = newest(run / "checkpoints", max_steps)
    if found is None:
        rank_zero_info(f"no checkpoint in {run / 'checkpoints'}: the run begins at its beginning")
    return None if found is None else str(found)


def check_written(trainer: L.Trainer) -> None:
    """To be called at the end of a run.

    Raises:
        OSError: where the last or the best checkpoint is missing because it could not be written.
    """
    io = trainer.strategy.checkpoint_io
    if not isinstance(io, DurableCheckpointIO) or not trainer.is_global_zero:
        return
    needed = [str(last_checkpoint(trainer))]
    needed += [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    if failed := "; ".join(f"{path} ({io.failed[path]})" for path in needed if path in io.failed):
        raise OSError(f"the run has ended, but its weights could not be saved: {failed}. The results above are valid")
