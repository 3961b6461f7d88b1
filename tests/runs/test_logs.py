"""Loggers that fail do not end a run, and the metrics file has each row once."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger
from short_fits import make_data, make_method, make_trainer

from mamllit.callbacks import CleanStop
from mamllit.runs import durable
from mamllit.runs.logs import keep_going
from mamllit.systems import MetaLearner


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
        with pytest.warns(UserWarning, match=r"CSVLogger cannot log \(OSError: .*No space left on device\); the run continues"):
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
        "Gone cannot log (ConnectionResetError: Connection lost); the run continues, and its result files are safe"
    ]


class Save(L.Callback):
    """Writes a checkpoint within each step from 4 on, and notes which rows are in the file then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: dict[int, list[int]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step >= 4:
            trainer.save_checkpoint(self.path / f"{trainer.global_step}.ckpt")
            (logger,) = trainer.loggers
            assert isinstance(logger, CSVLogger)
            written = (Path(logger.log_dir) / "metrics.csv").exists()
            self.seen[trainer.global_step] = steps_of(rows(logger), "train/mse") if written else []


def fit(path: Path, steps: int, ckpt_path: Path | None = None, **changes: Any) -> tuple[Save, list[dict[str, str]]]:
    save, logger = Save(path), CSVLogger(path)
    trainer = make_trainer(
        steps,
        logger=logger,
        default_root_dir=path,
        callbacks=[CleanStop(), save],
        limit_val_batches=None,
        val_check_interval=5,
        **changes,
    )
    keep_going(trainer.loggers)
    learner = MetaLearner(make_method(), compile=False, log_every=2, eval_steps=1)
    trainer.fit(learner, datamodule=make_data(), ckpt_path=ckpt_path, weights_only=False)
    trainer.save_checkpoint(path / "end.ckpt")
    return save, rows(logger)


def steps_of(found: list[dict[str, str]], name: str) -> list[int]:
    return [int(row["step"]) for row in found if row.get(name)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
def test_a_checkpoint_finds_the_row_of_its_step_in_the_log_and_the_row_is_there_once(tmp_path: Path) -> None:
    save, found = fit(tmp_path, 8)
    assert save.seen == {4: [1, 3], 5: [1, 3], 6: [1, 3, 5], 7: [1, 3, 5], 8: [1, 3, 5, 7]}
    assert steps_of(found, "train/mse") == [1, 3, 5, 7]
    assert steps_of(found, "val/mse") == [4]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("of", ["4", "5", "end"])
def test_a_run_that_goes_on_logs_in_step(tmp_path: Path, of: str) -> None:
    """From a checkpoint within a step, from one that owes a validation, and after its end."""
    fit(tmp_path, 8)
    begin = 8 if of == "end" else int(of)
    _, found = fit(tmp_path, 12, tmp_path / f"{of}.ckpt")
    assert steps_of(found, "train/mse") == [step for step in (1, 3, 5, 7, 9, 11) if step >= begin]
    assert steps_of(found, "val/mse") == [step for step in (4, 9) if step >= begin - (of == "5")]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
def test_a_step_of_several_batches_has_its_row_once(tmp_path: Path) -> None:
    save, found = fit(tmp_path, 6, accumulate_grad_batches=2)
    assert steps_of(found, "train/mse") == [1, 3, 5]
    assert save.seen[4] == [1, 3]
