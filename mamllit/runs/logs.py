"""Loggers that never end a training: a full disk or a lost server is one warning, and what can be kept is kept."""

import csv
import io
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from wandb.errors import AuthenticationError, CommError, UsageError

from mamllit.runs import durable

# the step and the names of what a logger got early
EARLY: weakref.WeakKeyDictionary[Logger, tuple[int, frozenset[str]]] = weakref.WeakKeyDictionary()
EARLY_ABLE: weakref.WeakSet[Logger] = weakref.WeakSet()  # those that leave a row out which they have already
GUARDED = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")


class SturdyWandbLogger(WandbLogger):
    """Lightning's, which logs offline where the server cannot be reached at the start of a run."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of W&B.

        Raises:
            AuthenticationError: where there is no key, or the server answers that it does not know it.
        """
        try:
            with _without_warning("anonymous setting"):  # Lightning passes it on, though it is not set
                return super().experiment
        except (AuthenticationError, UsageError) as error:
            raise AuthenticationError(
                f"W&B has no valid API key ({str(error).rstrip('.')}): run `wandb login` once, or set WANDB_API_KEY; or log "
                "offline with --wandb offline, or not at all with --wandb disabled"
            ) from error
        except CommError as error:
            warnings.warn(
                f"the W&B server cannot be reached ({error}); this run is logged offline to {self.save_dir}/wandb; "
                "`wandb sync` uploads it later",
                stacklevel=2,
            )
            wandb.teardown()  # its process holds the run's id, and has read its settings
            with _without_warning("anonymous setting"), _environment("WANDB_MODE", "offline"):
                return super().experiment


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _without_warning(text: str) -> Iterator[None]:
    """Within, W&B does not print its warnings that hold this text."""
    print_it = wandb.termwarn

    def other_than(said: str, *args: Any, **kwargs: Any) -> None:
        if text not in said:
            print_it(said, *args, **kwargs)

    wandb.termwarn = other_than  # type: ignore[assignment]
    try:
        yield
    finally:
        wandb.termwarn = print_it


def keep_going(loggers: list[Logger]) -> None:
    """Let no logger end the run. A CSVLogger keeps in memory what it could not write, and writes it when it can again."""
    for logger in loggers:
        if type(logger) is WandbLogger:  # by now, for jsonargparse knows the arguments of Lightning's class only
            logger.__class__ = SturdyWandbLogger
        said: set[str] = set()
        EARLY_ABLE.add(logger)
        for name in GUARDED:
            if hasattr(type(logger), name):
                setattr(logger, name, _guarded(logger, name, said))


@contextmanager
def unharmed(logger: Logger, said: set[str] | None = None) -> Iterator[None]:
    """A block that gives something to a logger: if it fails, it warns, of each problem in `said` once, and the run goes on."""
    try:
        yield
    except Exception as error:  # wandb has errors of many kinds; none of them may end a training
        problem = f"{type(error).__name__}: {error}"
        if said is None or problem not in said:
            if said is not None:
                said.add(problem)
            kind = type(logger).__name__.removeprefix("Sturdy")
            warnings.warn(f"{kind} cannot log ({problem}); the run continues, and its result files are safe", stacklevel=4)


def log_early(trainer: L.Trainer) -> None:
    """Give the loggers the training values of the step under way now, before a checkpoint of it is written.

    Lightning does so after the step's hooks, one of which writes the checkpoint: a kill between the two would lose the row, for
    the resumed run begins with the next step. When it comes, what is here already is left out.
    """
    step, loop = trainer.global_step - 1, trainer.fit_loop
    progress = loop.epoch_loop.batch_progress
    within = progress.total.processed > progress.total.completed  # type: ignore[attr-defined]
    batch = progress.current.ready
    stepped = trainer.is_last_batch or batch == trainer.num_training_batches or batch % trainer.accumulate_grad_batches == 0
    if not within or not stepped or (step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return
    values = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("train")}
    for logger in trainer.loggers:
        if values and logger in EARLY_ABLE and EARLY.get(logger, (None,))[0] != step:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step)
            EARLY[logger] = step, frozenset(name for name in values if not _is_axis(name))


def _is_axis(name: str) -> bool:
    """Whether it places other values, in every row that has some."""
    return name == "epoch" or name.startswith("trainer/")


def _without_early(logger: Logger, metrics: Any, step: int | None) -> dict[str, Any]:
    at, names = EARLY.get(logger, (None, frozenset()))
    return {name: value for name, value in metrics.items() if at is None or at != step or name not in names}


def _guarded(logger: Logger, name: str, said: set[str]) -> Callable:
    method = getattr(logger, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        returned = None
        if name == "log_metrics":
            given = dict(zip(("metrics", "step"), args, strict=False)) | kwargs
            left = _without_early(logger, given["metrics"], given.get("step"))
            if len(left) < len(given["metrics"]) and all(map(_is_axis, left)):
                return None
            args, kwargs = (), {**given, "metrics": left}
        with unharmed(logger, said):
            if isinstance(logger, CSVLogger) and isinstance(logger.experiment, ExperimentWriter):
                logger.experiment.save = _whole_rows(logger.experiment)  # type: ignore[method-assign]
            returned = method(*args, **kwargs)
        if name == "finalize" and isinstance(logger, CSVLogger):
            _keep_the_rest(logger)
        return returned

    return call


def _keep_the_rest(logger: CSVLogger) -> None:
    """The rows that could not be written until the end, into a file elsewhere."""
    writer = logger.experiment
    if isinstance(writer, ExperimentWriter) and writer.metrics:
        durable.keep(
            Path(logger.log_dir) / "metrics_not_written.csv", _rows(_columns(writer.metrics), writer.metrics, header=True)
        )


def _whole_rows(writer: Any) -> Callable[[], None]:
    """Lightning's `_ExperimentWriter.save` such that a kill or a full disk leaves whole rows, and no row twice."""

    def save() -> None:
        if not writer.metrics:
            return
        path = str(writer.metrics_file_path)
        known = list(writer.metrics_keys)
        keys = _columns([dict.fromkeys(known), *writer.metrics])
        size = os.path.getsize(path) if os.path.exists(path) else 0
        try:
            if size and keys == known:
                with open(path, "a", newline="") as file:
                    file.write(_rows(keys, writer.metrics))
            else:
                old = []
                if size:
                    with open(path, newline="") as file:
                        old = list(csv.DictReader(file))
                durable.write(path, _rows(keys, [*old, *writer.metrics], header=True))
        except OSError:
            if size and os.path.getsize(path) > size:
                os.truncate(path, size)
            raise
        writer.metrics_keys, writer.metrics = keys, []

    return save


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({key for row in rows for key in row})


def _rows(keys: list[str], rows: list[dict[str, Any]], header: bool = False) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, fieldnames=keys)
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue()
