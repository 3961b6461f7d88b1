"""What Weights & Biases shows of a run beyond its scalars: adaptation curves, test episodes, histograms, the best model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger

from mamllit.callbacks.examples import episode_rows
from mamllit.callbacks.results import best_checkpoint
from mamllit.data import EpisodicDataModule
from mamllit.runs.logs import unharmed
from mamllit.systems.episodic import EpisodicSystem

STEP = "trainer/global_step"


class WandbDashboard(L.Callback):
    """Logs to the run's `WandbLogger`; does nothing if there is none. An offline run gets everything as well.

    - `adaptation/<set>`: the metric against the number of inner steps, a native line chart, at the end of a test;
      `adaptation/val` at the end of a fit.
    - `test/episodes`: a table of test episodes, with support, query and predictions before and after adaptation.
    - `gradients/<parameter>`, `step_sizes/<parameter>`: histograms, where asked for.
    - the best checkpoint, as an artifact of type "model".

    Args:
        episodes: test episodes in the table; 0 for none.
        histograms: meta-updates between two histograms; 0 for none. They cost time.
        step_sizes: names of parameters that are learned step sizes, as parts of the name.
        artifact: log the best checkpoint at the end of a fit (a copy is kept beside the run until it is synchronised).

    Raises:
        ValueError: for a negative number.
    """

    def __init__(
        self,
        episodes: int = 2,
        histograms: int = 0,
        step_sizes: tuple[str, ...] = ("rates", "lrs", "inner_lr", "step_size"),
        artifact: bool = True,
    ) -> None:
        super().__init__()
        if episodes < 0 or histograms < 0:
            raise ValueError(f"episodes is {episodes} and histograms {histograms}; both must be >= 0 (0: none)")
        self.episodes, self.histograms, self.artifact = episodes, histograms, artifact
        self.step_sizes = tuple(step_sizes)
        if not histograms:  # Lightning skips a hook that cannot be called
            self.on_before_optimizer_step = None  # type: ignore[assignment, method-assign]

    def _log(self, trainer: L.Trainer, log: Callable[[Any], None]) -> None:
        """Let `log` do its work on the tracker's run, if there is one, on the first rank; where it fails, the run goes on."""
        found = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if found and trainer.is_global_zero:
            with unharmed(found[0]):
                log(found[0].experiment)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if (trainer.global_step + 1) % self.histograms == 0:
            self._log(trainer, lambda run: self._log_histograms(run, trainer, pl_module))

    def _log_histograms(self, run: Any, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values: dict[str, Any] = {STEP: trainer.global_step}
        for name, parameter in pl_module.named_parameters():
            own = name.removeprefix("method.")
            if parameter.grad is not None:
                values[f"gradients/{own}"] = _histogram(parameter.grad)
            if any(part in own for part in self.step_sizes):
                values[f"step_sizes/{own}"] = _histogram(parameter)
        run.log(values)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, EpisodicSystem):
            self._log(trainer, lambda run: self._log_fit(run, trainer, pl_module))

    def _log_fit(self, run: Any, trainer: L.Trainer, pl_module: EpisodicSystem) -> None:
        if "val" in pl_module.summaries:
            run.log({"adaptation/val": _curve(pl_module, ["val"]), STEP: trainer.global_step})
        best = best_checkpoint(trainer)
        if self.artifact and best is not None:
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=best)
            path = Path(trainer.default_root_dir) / best["path"]
            artifact.add_file(str(path), name=path.name)
            run.log_artifact(artifact, aliases=["best"])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(pl_module, EpisodicSystem) and isinstance(data, EpisodicDataModule):
            self._log(trainer, lambda run: self._log_test(run, pl_module, data))

    def _log_test(self, run: Any, pl_module: EpisodicSystem, data: EpisodicDataModule) -> None:
        step = {STEP: pl_module.trained_steps}
        for evaluation in pl_module.evaluation_sets:
            names = [r.name for r in pl_module.readings if r.evaluation == evaluation and r.name in pl_module.summaries]
            run.log({f"adaptation/{evaluation.name}": _curve(pl_module, names), **step})
        sets = [evaluation for evaluation in pl_module.evaluation_sets if not evaluation.stream]
        if self.episodes and sets and pl_module.holds_examples:
            columns, rows = episode_rows(pl_module, data, sets[0], self.episodes)
            run.log({"test/episodes": wandb.Table(columns=[*columns], data=[_as_media(row) for row in rows]), **step})


def _curve(learner: EpisodicSystem, names: list[str]) -> Any:
    """Mean over the episodes after 0, 1, ... inner steps (or what else the method counts), and the ends of the 95% interval,
    one line each."""
    counted = {"gradient steps": "inner steps"}.get(learner.method.counted, learner.method.counted)
    metric, ys, keys = learner.method.objective.metric_name, [], []
    for name in names:
        summary = learner.summaries[name]
        ys += [summary.mean.tolist(), (summary.mean - summary.ci95).tolist(), (summary.mean + summary.ci95).tolist()]
        keys += [name, f"{name}, 95% low", f"{name}, 95% high"]
    first = max((learner.begins_at(reading.evaluation) for reading in learner.readings if reading.name in names), default=0)
    steps = list(range(first, first + max(map(len, ys))))
    return wandb.plot.line_series(steps, ys, keys, title=f"{metric} against {counted}", xname=counted)


def _histogram(values: torch.Tensor) -> wandb.Histogram:
    finite = values.detach().float().flatten()
    finite = finite[finite.isfinite()].cpu()
    return wandb.Histogram(finite.tolist() or [0.0])


def _as_media(row: list[Any]) -> list[Any]:
    """A row with its pictures, arrays [H, W] or [H, W, 3] of bytes, as the tracker's images."""
    return [wandb.Image(value) if hasattr(value, "dtype") else value for value in row]
