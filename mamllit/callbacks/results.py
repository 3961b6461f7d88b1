"""The result of a run: a table on the screen, `result.json` and `episodes.csv` in the run directory, a table in W&B."""

import csv
import io
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table

from mamllit.callbacks.references import References
from mamllit.callbacks.start_from import StartFrom
from mamllit.core.metrics import Summary
from mamllit.runs import durable
from mamllit.runs.checkpoint_io import ForeignCode, read
from mamllit.runs.logs import unharmed
from mamllit.runs.provenance import commit, versions
from mamllit.runs.stopping import own_checkpoints
from mamllit.systems.episodic import EpisodicSystem
from mamllit.systems.reading import Reading

Published = Mapping[str, Mapping[int, float]]


class ResultWriter(L.Callback):
    """Writes what was measured, with all that is needed to interpret it.

    Args:
        published: published means to print beside the measured ones: evaluation set name -> inner steps -> value. They are
            transductive; inductive readings have none.
        published_ci95: their 95% intervals (half-widths), where the paper gives them, in the same form.
        table_steps: numbers of inner steps that the printed table shows (all are in the file).
    """

    def __init__(
        self,
        published: Published | None = None,
        published_ci95: Published | None = None,
        table_steps: Sequence[int] = (0, 1, 2, 3, 5, 10),
    ) -> None:
        self.published: Published = published or {}
        self.published_ci95: Published = published_ci95 or {}
        self.table_steps = tuple(table_steps)
        self._fit: dict[str, Any] = {}
        self._validated: dict[str, Any] = {}  # the entries of the last validation, which a resumed run may not repeat
        self._kept: Path | None = None  # where result.json is: elsewhere where the run directory could not be written
        self._clock, self._first_step, self._seconds_before = 0.0, 0, 0.0
        self._checkpoint: Path | None = None  # what the fit goes on from
        self._references = References()

    def state_dict(self) -> dict[str, Any]:
        """Goes into every checkpoint, so that a resumed run knows how long its steps took, and the last validation."""
        return {"seconds": self._seconds(), **({"validated": self._validated} if self._validated else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]
        self._validated = state_dict.get("validated", {})

    def _seconds(self) -> float:
        return self._seconds_before + (time.monotonic() - self._clock if self._clock else 0.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._checkpoint = Path(trainer.ckpt_path) if trainer.ckpt_path else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock, self._first_step = time.monotonic(), trainer.global_step
        commit()  # which remembers it: by the end of a long run the clone may be at another

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = time.monotonic() - self._clock
        self._fit = {
            "steps_asked": trainer.max_steps,
            "steps_this_session": trainer.global_step - self._first_step,
            "seconds_this_session": round(seconds, 1),
            "seconds": round(self._seconds(), 1),  # of all sessions, without what was lost after a checkpoint
            "commit": commit(),
            "iterations_per_second": round((trainer.global_step - self._first_step) / max(seconds, 1e-9), 2),
        }
        self._seconds_before, self._clock = self._seconds(), 0.0
        self._fit |= _origin(trainer)
        if isinstance(pl_module, EpisodicSystem):
            skipped = getattr(pl_module, "skipped_steps", 0)
            self._fit |= {"skipped_steps": skipped} if skipped else {}
            self._write(trainer, pl_module, "fit")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Writes what was reached before a signal or an error, with the reason under `stopped`."""
        if self._clock:
            self.on_train_end(trainer, pl_module)
            self._fit["stopped"] = f"{type(exception).__name__}: {exception}"
            if isinstance(pl_module, EpisodicSystem):
                self._write(trainer, pl_module, "fit")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, EpisodicSystem) or trainer.sanity_checking:
            return
        self._validated = _entries(pl_module)
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer, pl_module, "validate")
            self._print(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._references = References()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(pl_module, EpisodicSystem) and getattr(pl_module.data, "references", False):
            self._references.update(pl_module.evaluation_sets[dataloader_idx].name, batch)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, EpisodicSystem):
            return
        self._write(trainer, pl_module, "test")
        self._print(trainer, pl_module)

    def _print(self, trainer: L.Trainer, learner: EpisodicSystem) -> None:
        if trainer.is_global_zero:
            Console(width=max(Console().width, 144)).print(self.table(learner))
            print(f"results: {self._kept or 'above, since they could not be written'}")

    # ---- the printed table ---------------------------------------------------------------------------------------

    def table(self, learner: EpisodicSystem) -> Table:
        """Mean and 95% interval after each number of steps; for regression also the median and the diverged share."""
        objective = learner.method.objective
        firsts = {first for evaluation in learner.evaluation_sets if (first := learner.begins_at(evaluation))}
        steps = sorted({s for s in self.table_steps if s <= learner.eval_steps} | firsts)
        batch_norm = "" if learner.transductive else " (no batch norm)"
        split = f"meta-{learner.evaluation_sets[0].split}" if learner.evaluation_sets else "meta-test"
        along = learner.method.counted
        title = f"{objective.metric_name} on {split} after n {along}{batch_norm}"
        per_class = " per class" if objective.metric_name == "accuracy" else ""
        counted = getattr(objective, "counted", "queries")
        unit = " step" if along == "gradient steps" else ""
        table = Table(f"{split} episodes", "", *(f"{s}{unit}{'s' * (s != 1 and unit != '')}" for s in steps), title=title)
        for evaluation in learner.evaluation_sets:
            own = [r for r in learner.readings if r.evaluation == evaluation and r.name in learner.summaries]
            rows = [row for reading in own for row in self._rows(learner, reading, steps)]
            for kind, (mean, ci95) in self._references.of(evaluation.name).items():
                rows.append((kind, [f"{mean:.4g}" + (f" ± {ci95:.2g}" if ci95 else "")]))
            for i, (kind, cells) in enumerate(rows):
                summary = learner.summaries[own[0].name]
                asked = f"{evaluation.stream} images" if evaluation.stream else f"{evaluation.queries} {counted}{per_class}"
                label = f"{evaluation.name}\n({summary.episodes} x {asked})"
                table.add_row(label if i == 0 else "", kind, *cells, end_section=i == len(rows) - 1)
        return table

    def _rows(self, learner: EpisodicSystem, reading: Reading, steps: list[int]) -> list[tuple[str, list[str]]]:
        summary = learner.summaries[reading.name]
        norm = reading.batch_norm or "mean"
        first = learner.begins_at(reading.evaluation)

        def cells_of(written: Callable[[int], str]) -> list[str]:  # a method without inner loop has one value, at 0
            return [written(s - first) if 0 <= s - first < len(summary.mean) else "" for s in steps]

        rows = [(f"{norm} ± 95%", cells_of(lambda s: f"{summary.mean[s]:.4g} ± {summary.ci95[s]:.2g}"))]
        if not learner.method.objective.higher_is_better:
            rows.append(("median", cells_of(lambda s: f"{summary.median[s]:.4g}")))
            rows.append(("diverged", cells_of(lambda s: f"{100 * summary.diverged[s]:.2f}%")))
        if published := self.published.get(reading.name):
            ci95 = self.published_ci95.get(reading.name, {})
            cells = [_with_interval(published.get(s), ci95.get(s)) for s in steps]
            rows.append(("published", cells))
        return rows

    # ---- the files -----------------------------------------------------------------------------------------------

    def _write(self, trainer: L.Trainer, learner: EpisodicSystem, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        folder, data = Path(trainer.default_root_dir), trainer.datamodule  # type: ignore[attr-defined]
        path = folder / "result.json"
        result = _read(self._kept or path)
        about = {
            "method": type(learner.method).__name__,
            "metric": learner.method.objective.metric_name,
            "transductive": learner.transductive,
            "steps_done": trainer.global_step if stage == "fit" else learner.trained_steps,
            "seed": data.seed if getattr(data, "seeded", True) else None,
            "command": sys.argv,
            "commit": commit(),
            "versions": versions(),
            "machine": {
                "platform": platform.platform(),
                "threads": torch.get_num_threads(),
                "device": str(learner.device),
            },
        }
        if stage != "validate" or not result:  # what the fit and the test have left is about their weights
            result |= about
        if stage == "fit":
            result["fit"] = self._fit
        elif stage == "test" and "fit" not in result and (fit := self._of_checkpoint() or _origin(trainer)):
            result["fit"] = fit  # a fit of no steps: what was tested is what it began with, or what another run has trained
        if stage == "fit" and (best := best_checkpoint(trainer)):
            result["best_checkpoint"] = best
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    with unharmed(logger):
                        logger.experiment.summary["best_checkpoint"] = best
        if entries := self._validated | _entries(learner) if stage == "fit" else _entries(learner):
            result.setdefault("results", {}).update(entries)
        if stage == "test" and (references := self._references.as_dict()):
            result["references"] = references
        self._kept = durable.keep(path, json.dumps(result, indent=2))
        if stage == "test":
            header = ("set", "batch_norm", "episode", "steps", learner.method.objective.metric_name)
            text = io.StringIO(newline="")
            csv.writer(text).writerows([header, *self._episode_rows(learner)])
            durable.keep(folder / "episodes.csv", text.getvalue())
            self._log_table(trainer, learner)

    def _of_checkpoint(self) -> dict[str, Any]:
        """What the checkpoint's own run recorded about its training."""
        return {} if self._checkpoint is None else _read(self._checkpoint.parents[1] / "result.json").get("fit") or {}

    @staticmethod
    def _episode_rows(learner: EpisodicSystem) -> list[tuple[str, str, int, int, float]]:
        rows: list[tuple[str, str, int, int, float]] = []
        for reading in learner.readings:
            index, values = learner.per_episode[reading.name]
            for episode, row in zip(index.tolist(), values.tolist(), strict=True):
                rows += [
                    (reading.evaluation.name, reading.batch_norm or "none", episode, steps, value)
                    for steps, value in enumerate(row)
                ]
        return rows

    def _log_table(self, trainer: L.Trainer, learner: EpisodicSystem) -> None:
        columns = ["set", "inner steps", "mean", "ci95", "median", "diverged", "episodes", "queries", "batch_norm"]
        data = [
            [name, steps, *(entry[field][steps] for field in ("mean", "ci95", "median", "diverged")),
             entry["episodes"], entry["queries"], entry["batch_norm"] or "none"]
            for name, entry in _entries(learner).items()
            for steps in range(len(entry["mean"]))
        ]  # fmt: skip
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                with unharmed(logger):
                    logger.log_table("test/results", columns=columns, data=data)


def _origin(trainer: L.Trainer) -> dict[str, Any]:
    """What the run began with, as an entry of the result; empty for untrained weights."""
    starts = (callback for callback in trainer.callbacks if isinstance(callback, StartFrom))  # type: ignore[attr-defined]
    origin = next((start.origin for start in starts), None)
    return {"started_from": origin} if origin else {}


def _with_interval(mean: float | None, ci95: float | None) -> str:
    return "" if mean is None else f"{mean:g}" + (f" ± {ci95:g}" if ci95 is not None else "")


def _read(path: Path) -> dict[str, Any]:
    """What an earlier session, or command, has left; a damaged file is put aside, and said."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("results", {}), dict):
            raise ValueError("it does not hold a result")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        aside = path.with_name("result_damaged.json")
        try:
            path.replace(aside)
            kept = f"it is kept as {aside.name} and a new one is written"
        except OSError:
            kept = "a new one is written"
        rank_zero_warn(f"{path} cannot be read ({error}); {kept}")
        return {}


def _entries(learner: EpisodicSystem) -> dict[str, Any]:
    """What the learner's last evaluation measured, by the readings' names."""
    found = [reading for reading in learner.readings if reading.name in learner.summaries]
    return {
        reading.name: _as_json(reading, learner.summaries[reading.name], learner.measured_at.get(reading.name))
        for reading in found
    }


def _as_json(reading: Reading, summary: Summary, step: int | None) -> dict[str, Any]:
    """One reading of the weights after `step` steps; a number that JSON cannot hold (inf, nan) becomes a string."""
    evaluation = reading.evaluation

    def numbers(tensor: torch.Tensor) -> list[float | str]:
        return [_as_number(value) for value in tensor.tolist()]

    return {
        "protocol": evaluation.protocol,
        "split": evaluation.split,
        "step": step,
        "batch_norm": reading.batch_norm,
        "shots": evaluation.shots,
        "queries": evaluation.queries,
        "episodes": summary.episodes,
        **{field: numbers(getattr(summary, field)) for field in ("mean", "ci95", "median", "diverged")},
    }


def _as_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def best_checkpoint(trainer: L.Trainer) -> dict[str, Any] | None:
    """Path (from the run directory), monitored metric, its value and step of the best checkpoint; None without one, and where
    the disk holds another than the best, which could not be written."""
    for callback in own_checkpoints(trainer):
        if callback.monitor and callback.best_model_path:
            failed = getattr(trainer.strategy.checkpoint_io, "failed", ())
            if callback.best_model_path in failed or not Path(callback.best_model_path).exists():
                return None
            path, folder = Path(callback.best_model_path), Path(trainer.default_root_dir).resolve()
            try:
                checkpoint = read(path)
            except ForeignCode:  # a callback of the user's own keeps more than plain data; no reason to end without a result
                checkpoint = None
            if callback.best_model_score is None or checkpoint is None:  # of a run that was moved; damaged
                return None
            return {
                "path": str(path.relative_to(folder) if path.is_relative_to(folder) else path),
                "monitor": callback.monitor,
                "score": _as_number(callback.best_model_score.item()),
                "step": checkpoint["global_step"],
            }
    return None
