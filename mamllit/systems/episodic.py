"""The base of every system that is judged by episodes: evaluation on fixed episodes, and the optimiser.

A system is a LightningModule that holds a method and says in `training_step` how it learns. All systems share what is here:
validation, test, metrics, and the summaries that the callbacks read.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor

from mamllit.backbones.population import normalised_by_population
from mamllit.core.episode import Episode, EpisodeBatch
from mamllit.core.metrics import EpisodeMetric, Summary
from mamllit.core.tree import item, tree_map
from mamllit.data import EpisodicDataModule, EvaluationSet, ImageDataModule
from mamllit.data.images import weights_meet
from mamllit.engine.company import company
from mamllit.engine.cpu import prepare
from mamllit.engine.evaluation import BATCH_NORMS, readings
from mamllit.engine.meta_gradient import Execution
from mamllit.methods import Method
from mamllit.methods.parts.streams import StreamMethod
from mamllit.systems.reading import NORMALISATIONS, Normalisation, Reading, readings_of
from mamllit.systems.resuming import check_resumable, obey, optimizer_settings, resumed_settings, schedule_settings


class EpisodicSystem(L.LightningModule):
    """Evaluates a method on the fixed episodes of an `EpisodicDataModule`; subclasses say how it is trained.

    Args:
        method: what is learned.
        optimizer: makes the optimiser from the parameters.
        lr_scheduler: makes a scheduler from the optimiser, stepped after every update; None for a constant rate.
            `ReduceLROnPlateau` (Lightning's, with a `monitor`) steps after every validation, or, if it monitors a training
            value, each time that is logged.
        eval_steps: inner steps at validation and test; metrics are reported after 0, 1, ..., eval_steps.
        report_step: the number of inner steps whose value is the headline (`val/<metric>`, progress bar, model selection).
        log_every: steps between two logged training values; logging each step would cost more than a sine step.
        diverged_above: an evaluation value above this counts as a diverged episode (regression).
        batch_norm: which statistics normalise the query images in a test, see `mamllit.engine.evaluation`; "population": those
            of the meta-train images, for support and query, see `mamllit.backbones.population`. Without batch norm there is one
            reading. Validation is transductive, as meta-training is.
        execution: how the episodes of a batch run: "auto", "vmap", "loop", or a chunk size (see `mamllit.engine`).

    After an evaluation, `readings` lists what was measured, and `summaries`, `per_episode` and `measured_at` (the step of the
    weights) hold it by the reading's name.

    Raises:
        ValueError: for numbers out of bounds; at `setup`, when the data's ways differ from the network's outputs.

    >>> from mamllit import EpisodicSystem, NearestNeighbour, Classification
    >>> import torch
    >>> EpisodicSystem(NearestNeighbour(torch.nn.Flatten(), Classification()), report_step=0).report_step
    0
    """

    holds_examples: ClassVar[bool] = True  # False where an episode holds no examples that could be shown: they come from acting

    def __init__(
        self,
        method: Method,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_steps: int = 10,
        report_step: int = 1,
        log_every: int = 50,
        diverged_above: float | None = None,
        batch_norm: Sequence[Normalisation] = BATCH_NORMS,
        execution: Execution = "auto",
    ) -> None:
        super().__init__()
        if not 0 <= report_step <= eval_steps:
            raise ValueError(f"report_step is {report_step}; it must lie between 0 and eval_steps, which is {eval_steps}")
        if log_every < 1:
            raise ValueError(f"log_every is {log_every}; it must be >= 1")
        if not batch_norm or len(set(batch_norm)) < len(batch_norm) or set(batch_norm) - set(NORMALISATIONS):
            raise ValueError(f"batch_norm is {list(batch_norm)}; it must list some of {list(NORMALISATIONS)}, each once")
        self.method = method
        self.eval_steps, self.report_step, self.log_every = eval_steps, report_step, log_every
        self.diverged_above, self.batch_norm, self.execution = diverged_above, tuple(batch_norm), execution
        self.evaluation_sets: list[EvaluationSet] = []
        self.readings: list[Reading] = []
        self.summaries: dict[str, Summary] = {}
        self.per_episode: dict[str, tuple[Tensor, Tensor]] = {}
        self.measured_at: dict[str, int] = {}
        self.optimizer_settings: dict[str, Any] | None = None
        self._resumed_settings: dict[str, Any] | None = None  # of the checkpoint that a fit goes on from
        self._resumed = False  # whether the next step is the first after it
        self.trained_steps = 0
        self.skipped_steps = 0  # updates that were left out, see `MetaLearner`
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self._metrics: dict[str, EpisodeMetric] = {}
        self._by_population: list[Method] = []  # the method by the meta-train images' statistics; a list: it is no part of this

    @property
    def data(self) -> object:
        """The Trainer's data module; None without one, as when a checkpoint is loaded without a Trainer."""
        try:
            return getattr(self.trainer, "datamodule", None)
        except RuntimeError:  # attached to no Trainer
            return None

    # ---- training ------------------------------------------------------------------------------------------------

    def optimized(self) -> list[Any]:
        """What the optimiser is given: parameters, or groups of them."""
        return list(self.parameters())

    def configure_optimizers(self) -> Any:
        if not any(value.requires_grad for value in self.parameters()):
            if steps := self.trainer.max_steps:
                raise ValueError(
                    f"{type(self.method).__name__} has nothing to train here, but trainer.max_steps is {steps}; set it to 0 "
                    "to test only"
                )
            return None
        optimizer = self._optimizer(self.optimized())
        unscheduled = optimizer_settings(optimizer)
        scheduler = None if self._lr_scheduler is None else self._lr_scheduler(optimizer)
        self.optimizer_settings = unscheduled | schedule_settings(optimizer, scheduler)
        if self._resumed_settings is not None:
            check_resumable(self._resumed_settings, self.optimizer_settings)
        if scheduler is None:
            return optimizer
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            settings |= self._watched(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def _watched(self, scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau) -> dict[str, Any]:
        """Lightning's settings for `ReduceLROnPlateau`: the value it monitors, and a step each time that value is new."""
        monitor = getattr(scheduler, "monitor", None)
        if monitor is None:
            raise ValueError(
                "ReduceLROnPlateau has nothing to monitor; use lightning.pytorch.cli.ReduceLROnPlateau with "
                f"monitor: val/{self.method.objective.metric_name} (or another logged value)"
            )
        every = self.trainer.val_check_interval if str(monitor).startswith("val/") else self.log_every
        return {"monitor": monitor, "frequency": every if isinstance(every, int) else 1}

    def on_fit_start(self) -> None:
        if isinstance(data := self.data, EpisodicDataModule):
            self._find_company(data)
        # else the loggers get the last value again at every step
        self.trainer.log_every_n_steps = self.log_every  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        if self._resumed_settings is not None and self.optimizer_settings is not None:
            obey(self.trainer, self._resumed_settings, self.optimizer_settings, self._lr_scheduler)
            self._resumed_settings, self._resumed = None, True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._resumed:  # where the run before ended with a validation, Lightning has counted a step that it did not make
            self._log_at(self.global_step)
            self._resumed = False

    def on_train_end(self) -> None:
        self.trained_steps = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_steps = checkpoint["global_step"]
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._resumed_settings = resumed_settings(checkpoint)
        weights_meet(self.data, checkpoint, "the checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(data := self.data, ImageDataModule):
            checkpoint["preparation"] = data.preparation.as_dict()
        checkpoint["optimizer_settings"] = self.optimizer_settings
        # Within a step Lightning saves before it has counted the step, and makes up for that when it resumes; saved after a
        # validation or the last step, it would log the steps to come one early
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_loop.batch_progress"]
        ready, total = progress["current"]["ready"], progress["total"]
        last = progress["is_last_batch"] or ready == self.trainer.num_training_batches
        stepped = last or ready % self.trainer.accumulate_grad_batches == 0
        uncounted = stepped and total["processed"] > total["completed"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - int(uncounted)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        prepare(self.trainer.strategy.root_device)
        data = self.data
        if isinstance(data, EpisodicDataModule):
            self.check_ways(data)

    def check_ways(self, data: EpisodicDataModule) -> None:
        """Raise `ValueError` where the network has another number of outputs than the data has ways."""
        outputs = getattr(getattr(self.method, "backbone", None), "out_features", None)
        if outputs is None or self.method.reads_features:
            return
        for name in ("ways", "train_ways"):
            if outputs != (asked := getattr(data, name, outputs)):
                raise ValueError(
                    f"the network has {outputs} outputs (out_features), but an episode of the data has {asked} {name}; "
                    "give both the same number"
                )

    def begins_at(self, evaluation: EvaluationSet) -> int:
        """The start of a curve, in units of `method.counted`: 0, or K where a stream method was shown a support."""
        return 0 if evaluation.stream or not isinstance(self.method, StreamMethod) else evaluation.shots

    def own_figures(self, evaluation: EvaluationSet, title: str) -> dict[str, Figure]:
        """Figures of adaptation by name, of a system whose episodes hold no examples."""
        return {}

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation("val")

    def validation_step(self, batch: EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._start_evaluation("test")

    def test_step(self, batch: EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the other query examples, as a trial found; before any trial, as the method says."""
        found = company(self.method)
        return self.method.transductive if found is None else found.kind != "none"

    def _find_company(self, data: EpisodicDataModule) -> None:
        company(self.method, self._first_episode(data))

    def _first_episode(self, data: EpisodicDataModule) -> Episode:
        (first,) = data.evaluation_sets("val")[:1]
        return tree_map(lambda tensor: tensor.to(self.device), item(data.episodes(first, 0, 1).episodes, 0))

    def _start_evaluation(self, split: Literal["val", "test"]) -> None:
        data = self.data
        if not isinstance(data, EpisodicDataModule):
            own = type(self).__name__
            raise TypeError(
                f"{own} evaluates on the fixed episodes of an EpisodicDataModule, but the Trainer has {data!r}; "
                "pass datamodule=..., a subclass of mamllit.data.EpisodicDataModule"
            )
        if self.trainer.state.fn != TrainerFn.FITTING and self.trainer.global_step == 0:  # no fit in this process: log at the
            self._log_at(self.trained_steps)  # step of the checkpoint, not at 0
        self.evaluation_sets = data.evaluation_sets(split)
        asked: Sequence[Normalisation] = self.batch_norm if split == "test" else BATCH_NORMS[:1]
        self._find_company(data)
        self._by_population = [self._measured(data)] if "population" in asked and self.transductive else []
        self.readings = readings_of(self.evaluation_sets, asked if self.transductive else (None,))
        self._metrics = {reading.name: EpisodeMetric(self.diverged_above).to(self.device) for reading in self.readings}

    def _evaluate(self, batch: EpisodeBatch, dataloader_idx: int) -> None:
        evaluation = self.evaluation_sets[dataloader_idx]
        own = [reading for reading in self.readings if reading.evaluation == evaluation]
        ways = [reading.way for reading in own if reading.batch_norm != "population"]
        values: dict[Normalisation, Tensor] = {}
        if ways:
            values.update(readings(self.method, batch.episodes, self.eval_steps, ways, self.execution).items())
        for method in self._by_population:
            only = readings(method, batch.episodes, self.eval_steps, BATCH_NORMS[:1], self.execution)
            values["population"] = only["transductive"]
        for reading in own:
            self._metrics[reading.name].update(batch.number, values[reading.batch_norm or reading.way])

    def _measured(self, data: EpisodicDataModule) -> Method:
        """The method with norms that use the statistics of meta-train images."""
        if not isinstance(data, ImageDataModule):
            raise ValueError(
                f"'population' in batch_norm needs meta-train images, and {type(data).__name__} has none; leave it out"
            )
        images = (batch.to(self.device) for batch in data.population())
        method = normalised_by_population(self.method, "backbone", images)
        found = company(method, self._first_episode(data))
        if found is not None and found.kind != "none":
            raise ValueError(
                "even with statistics of meta-train images, a prediction depends on the other images: the network has norms "
                "other than mamllit.backbones.BatchStatNorm; leave 'population' out of batch_norm"
            )
        return method

    def _log_at(self, step: int) -> None:
        """Let the loggers place the next values at this step."""
        self.trainer.fit_loop.epoch_loop.on_load_checkpoint({"_batches_that_stepped": step})

    def _finish_evaluation(self, split: Literal["val", "test"]) -> None:
        asked, self.readings, self.evaluation_sets = self.readings, [], []
        if self.trainer.sanity_checking:  # of weights that are not trained yet, on a part of the episodes
            return
        metric_name = self.method.objective.metric_name
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        for reading in asked:
            metric = self._metrics[reading.name]
            summary: Summary = metric.summary()
            measured = reading.measured(summary.episodes)
            self.readings.append(measured)
            if measured.evaluation not in self.evaluation_sets:
                self.evaluation_sets.append(measured.evaluation)
            name = measured.name
            self.summaries[name] = summary
            self.per_episode[name] = metric.ordered
            self.measured_at[name] = self.global_step if fitting else self.trained_steps
            prefix = f"{split}/{name}/" if split == "test" else f"{split}/"
            values = {}
            for steps in range(len(summary.mean)):
                for field in ("mean", "ci95", "median", "diverged"):
                    values[f"{prefix}{metric_name}_step{steps}_{field}"] = getattr(summary, field)[steps].float()
            self.log_dict(values, sync_dist=True)  # equal on all ranks already; said so that Lightning need not warn
            if split == "val":
                headline = summary.mean[min(self.report_step, len(summary.mean) - 1)]
                self.log(f"val/{metric_name}", headline.float(), prog_bar=True, sync_dist=True)
