"""Loggers that do not end a training: a full disk or a server that is gone is said once, and what can be kept is kept."""

import csv
import io
import os
import warnings
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from mamllit import durable

GUARDED = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")


def keep_going(loggers: list[Logger]) -> None:
    """Let no logger end the run. A CSVLogger keeps in memory what it could not write, and writes it when it can again."""
    for logger in loggers:
        said: set[str] = set()
        for name in GUARDED:
            setattr(logger, name, _guarded(logger, getattr(logger, name), said))


def _guarded(logger: Logger, method: Callable, said: set[str]) -> Callable:
    kind = type(logger).__name__

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if isinstance(logger, CSVLogger) and isinstance(logger.experiment, ExperimentWriter):
                logger.experiment.save = _whole_rows(logger.experiment)  # type: ignore[method-assign]
            return method(*args, **kwargs)
        except Exception as error:  # wandb has errors of many kinds; none of them is worth a training
            problem = f"{type(error).__name__}: {error}"
            if problem not in said:
                said.add(problem)
                warnings.warn(
                    f"{kind} cannot log ({problem}); the run goes on, and its result files do not need it", stacklevel=2
                )
            return None

    return call


def _whole_rows(writer: Any) -> Callable[[], None]:
    """Lightning's `_ExperimentWriter.save` such that a kill or a full disk leaves whole rows, and no row twice."""

    def save() -> None:
        if not writer.metrics:
            return
        path = str(writer.metrics_file_path)
        known = list(writer.metrics_keys)
        keys = sorted({*known, *(key for row in writer.metrics for key in row)})
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


def _rows(keys: list[str], rows: list[dict[str, Any]], header: bool = False) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, fieldnames=keys)
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue()
