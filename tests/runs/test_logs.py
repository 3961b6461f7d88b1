"""Loggers that fail do not end a run, and the metrics file has each row once."""

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from mamllit.runs import durable
from mamllit.runs.logs import keep_going


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows_are_written_once_and_old_ones_get_new_columns(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    keep_going([logger])
    for step, metrics in enumerate([{"a": 1.0}, {"a": 2.0}, {"b": 3.0}]):
        logger.log_metrics(metrics, step)
        logger.save()
    assert [(row["a"], row["b"], row["step"]) for row in rows(logger)] == [("1.0", "", "0"), ("2.0", "", "1"), ("", "3.0", "2")]


def test_what_a_full_disk_refused_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CSVLogger(tmp_path)
    keep_going([logger])
    logger.log_metrics({"a": 1.0}, 0)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(durable, "write", full)
        with pytest.warns(UserWarning, match=r"CSVLogger cannot log \(OSError: .*No space left on device\); the run goes on"):
            logger.save()
    logger.log_metrics({"a": 2.0}, 1)
    logger.save()
    assert [row["a"] for row in rows(logger)] == ["1.0", "2.0"]


def test_a_server_that_is_gone_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    class Gone(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            raise ConnectionResetError("Connection lost")

    logger = Gone("unused")
    keep_going([logger])
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
    assert [str(w.message) for w in recwarn] == [
        "Gone cannot log (ConnectionResetError: Connection lost); the run goes on, and its result files do not need it"
    ]
