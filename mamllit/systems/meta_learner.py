"""The LightningModule: a training step is a batch of inner-loop adaptations plus the meta-loss."""

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from mamllit.core.episode import EpisodeBatch
from mamllit.core.metrics import EpisodeMetric, Summary
from mamllit.core.tree import item, tree_map
from mamllit.data import EpisodicDataModule, EvaluationSet, ImageDataModule
from mamllit.data.images import weights_meet
from mamllit.engine.compiling import should_compile
from mamllit.engine.evaluation import BATCH_NORMS, BatchNorm, readings
from mamllit.engine.meta_gradient import Execution, MetaGradient
from mamllit.engine.stages import Memory, MetaStep
from mamllit.engine.trial import company
from mamllit.kernels.malloc import keep_memory
from mamllit.methods import Method
from mamllit.systems.groups import parameter_groups
from mamllit.systems.guard import NonFinite, finite, not_finite
from mamllit.systems.handover import ReadyGradient
from mamllit.systems.hooks import skip_driver_checks, skip_empty_hooks
from mamllit.systems.lean import take_lean_steps
from mamllit.systems.reading import Reading, readings_of


class MetaLearner(L.LightningModule):
    """Meta-trains a method and evaluates it on fixed episodes.

    Args:
        method: what is learned; its parameters are the meta-parameters.
        optimizer: makes the meta-optimiser from the meta-parameters.
        lr_scheduler: makes a scheduler from the optimiser, stepped after every meta-update; None for a constant rate.
        eval_steps: inner steps at validation and test; metrics are reported after 0, 1, ..., eval_steps.
        report_step: the number of steps whose value is the headline (`val/<metric>`, progress bar, model selection).
        execution: how the episodes of a meta-batch run: "auto", "vmap", "loop", or a chunk size (see `mamllit.engine`).
        compile: compile the training step: "auto" does so for runs of 2,000 steps or more, where a compiler is there and
            it pays (see `mamllit.engine.meta_gradient.MetaGradient`).
        memory: "keep" the activations of all inner steps for the outer gradient, or "recompute" them: the same gradient in the
            memory of one inner step.
        log_every: steps between two logged training values; logging each step would cost more than a sine step.
        non_finite: when a meta-loss or meta-gradient is not finite, "stop" the run, saying where it comes from, with a
            checkpoint from before; or "skip" that update and count it in `skipped_steps`.
        diverged_above: an evaluation value above this counts as a diverged episode (regression).
        batch_norm: by whose statistics a test normalises the query images, see `mamllit.engine.evaluation`; a method without
            batch norm has one reading in any case. Validation is transductive, as meta-training is.

    After an evaluation, `readings` lists what was measured, and `summaries` and `per_episode` hold it by the reading's name.

    Raises:
        ValueError: for numbers out of bounds; at `setup`, when the data's ways differ from the network's outputs.
    """

    def __init__(
        self,
        method: Method,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_steps: int = 10,
        report_step: int = 1,
        execution: Execution = "auto",
        compile: bool | Literal["auto"] = "auto",
        memory: Memory = "keep",
        log_every: int = 50,
        non_finite: NonFinite = "stop",
        diverged_above: float | None = None,
        batch_norm: Sequence[BatchNorm] = BATCH_NORMS,
    ) -> None:
        super().__init__()
        if not 0 <= report_step <= eval_steps:
            raise ValueError(f"report_step is {report_step}; it must lie between 0 and eval_steps, which is {eval_steps}")
        if log_every < 1:
            raise ValueError(f"log_every is {log_every}; it must be >= 1")
        if non_finite not in ("stop", "skip"):
            raise ValueError(f"non_finite is {non_finite!r}; it must be 'stop' or 'skip'")
        if not batch_norm or len(set(batch_norm)) < len(batch_norm) or set(batch_norm) - set(BATCH_NORMS):
            raise ValueError(f"batch_norm is {list(batch_norm)}; it must be one or both of {list(BATCH_NORMS)}, each once")
        self.method = method
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self.eval_steps, self.report_step = eval_steps, report_step
        self.execution, self.compile_setting, self.log_every = execution, compile, log_every
        self.non_finite, self.skipped_steps = non_finite, 0
        self.diverged_above, self.batch_norm = diverged_above, tuple(batch_norm)
        self.memory = memory
        self.meta_gradient = MetaGradient(method, execution, memory=memory)
        self.metrics: dict[str, EpisodeMetric] = {}
        self.evaluation_sets: list[EvaluationSet] = []
        self.readings: list[Reading] = []
        self.summaries: dict[str, Summary] = {}
        self.per_episode: dict[str, tuple[Tensor, Tensor]] = {}
        self.trained_steps = 0
        self.trained: list[Tensor] = []  # the meta-parameters of the fit under way
        self.logged = False  # whether a value was logged in the step under way

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_current_fx_name", "logged", "_under_way"):  # set at every step; nn.Module's look at each value is slow
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ---- meta-training -------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(parameter_groups(self.method))
        if self._lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._lr_scheduler(optimizer), "interval": "step"},
        }

    def on_fit_start(self) -> None:
        skip_empty_hooks(self.trainer)
        skip_driver_checks(self.device)
        if isinstance(data := getattr(self.trainer, "datamodule", None), EpisodicDataModule):
            self._find_company(data)
        setting = False if self.compile_setting == "auto" and not self.method.vectorised else self.compile_setting
        compiled = should_compile(setting, int(self.trainer.max_steps), self.device)
        self.meta_gradient = MetaGradient(self.method, self.execution, compiled, self.memory)
        self.trained = [value for value in self.method.parameters() if value.requires_grad]
        # else the loggers get the last value again at every step
        self.trainer.log_every_n_steps = self.log_every  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        take_lean_steps(self.trainer, self, known=type(self) is MetaLearner)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        for value in self.trained:  # what optimizer.zero_grad() does, less its bookkeeping
            value.grad = None

    def on_train_end(self) -> None:
        self.trained_steps = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_steps = checkpoint["global_step"]
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        weights_meet(self._data(), checkpoint, "the checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = self.skipped_steps
        if isinstance(data := self._data(), ImageDataModule):
            checkpoint["preparation"] = data.preparation.as_dict()
        # Lightning saves before it has counted the step, and makes up for that when it resumes; a save after the last step has
        # counted it, and a resumed run would log one step late
        if steps := checkpoint["global_step"]:
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - 1

    def _data(self) -> object:
        """The Trainer's data module; None without one, as where a checkpoint is loaded by itself."""
        try:
            return getattr(self.trainer, "datamodule", None)
        except RuntimeError:  # attached to no Trainer
            return None

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)
        self.check_gradient()

    def check_gradient(self) -> None:
        """Leave the update out, or stop, where the meta-gradient is not finite."""
        if not finite([value.grad for value in self.trained if value.grad is not None]):  # of all ranks: the same decision
            batch, measured = self._under_way
            not_finite(self, batch, float(measured))

    def log(self, *args: Any, **kwargs: Any) -> None:
        self.logged = True
        super().log(*args, **kwargs)

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        step = self.meta_step(batch)
        return ReadyGradient.apply(step.loss, len(step.gradient), *step.gradient.values(), *self.trained)

    def meta_step(self, batch: EpisodeBatch) -> MetaStep:
        """The meta-loss of a batch and its gradient; the values are logged where they are due."""
        if not isinstance(batch, EpisodeBatch):
            raise TypeError(
                f"a training step needs an EpisodeBatch, and got a {type(batch).__name__}: MetaLearner trains on episodes. "
                "Give the Trainer datamodule=..., a subclass of mamllit.data.ImageDataModule or EpisodicDataModule, not a "
                "DataLoader"
            )
        iteration = self.global_step
        self.method.begin_iteration(iteration)
        step = self.meta_gradient(batch.episodes)
        self._under_way = batch, step.loss
        if (iteration + 1) % self.log_every == 0:
            values = {"train/meta_loss": step.loss, **{f"train/{name}": value for name, value in step.logs.items()}}
            self.log_dict(values, prog_bar=True, batch_size=len(batch.number), sync_dist=True)  # the mean of all ranks
            self._log_episodes(iteration + 1, len(batch.number) * self.trainer.world_size)
        return step

    def _log_episodes(self, steps: int, meta_batch_size: int) -> None:
        """An axis for loggers: at equal numbers of it, runs with different meta-batches have seen as many episodes."""
        self.log("trainer/episodes", float(steps * self.trainer.accumulate_grad_batches * meta_batch_size))

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.trainer.strategy.root_device.type == "cpu":
            keep_memory()
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, EpisodicDataModule):
            self._check_ways(data)

    def _check_ways(self, data: EpisodicDataModule) -> None:
        if getattr(data, "plain", None) is not None:
            raise ValueError(
                f"the data gives plain batches ({data.plain}), and MetaLearner trains on episodes; leave `plain` out"  # type: ignore[attr-defined]
            )
        backbone = getattr(self.method, "backbone", None)
        outputs = getattr(backbone, "out_features", None)
        if outputs is not None and outputs != data.ways:
            raise ValueError(
                f"the network has {outputs} outputs (out_features), but an episode of the data has {data.ways} ways; "
                "give both the same number"
            )

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the other query examples, as a trial has shown; before one, by the method's word."""
        found = company(self.method)
        return self.method.transductive if found is None else found.kind != "none"

    def _find_company(self, data: EpisodicDataModule) -> None:
        (first,) = data.evaluation_sets("val")[:1]
        batch = data.episodes(first, 0, 1).episodes
        company(self.method, tree_map(lambda tensor: tensor.to(self.device), item(batch, 0)))

    def _start_evaluation(self, split: Literal["val", "test"]) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, EpisodicDataModule):
            raise TypeError(
                f"MetaLearner evaluates on the fixed episodes of an EpisodicDataModule, but the Trainer has {data!r}; "
                "pass datamodule=..., a subclass of mamllit.data.EpisodicDataModule"
            )
        self.evaluation_sets = data.evaluation_sets(split)
        asked = self.batch_norm if split == "test" else BATCH_NORMS[:1]
        self._find_company(data)
        self.readings = readings_of(self.evaluation_sets, asked if self.transductive else (None,))
        self.metrics = {reading.name: EpisodeMetric(self.diverged_above).to(self.device) for reading in self.readings}

    def _evaluate(self, batch: EpisodeBatch, dataloader_idx: int) -> None:
        evaluation = self.evaluation_sets[dataloader_idx]
        own = [reading for reading in self.readings if reading.evaluation == evaluation]
        values = readings(self.method, batch.episodes, self.eval_steps, [reading.way for reading in own], self.execution)
        for reading in own:
            self.metrics[reading.name].update(batch.number, values[reading.way])

    def _finish_evaluation(self, split: Literal["val", "test"]) -> None:
        metric_name = self.method.objective.metric_name
        for name, metric in self.metrics.items():
            summary: Summary = metric.summary()
            self.summaries[name] = summary
            self.per_episode[name] = metric.ordered
            prefix = f"{split}/{name}/" if split == "test" else f"{split}/"
            values = {}
            for steps in range(len(summary.mean)):
                for field in ("mean", "ci95", "median", "diverged"):
                    values[f"{prefix}{metric_name}_step{steps}_{field}"] = getattr(summary, field)[steps].float()
            self.log_dict(values, sync_dist=True)  # equal on all ranks already; said so that Lightning need not warn
            if split == "val":
                headline = summary.mean[min(self.report_step, len(summary.mean) - 1)]
                self.log(f"val/{metric_name}", headline.float(), prog_bar=True, sync_dist=True)
                self._log_episodes(self.global_step, self.trainer.datamodule.meta_batch_size)  # type: ignore[attr-defined]

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
