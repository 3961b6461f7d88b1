"""Meta-learning: a training step is a batch of inner-loop adaptations plus the meta-loss."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from mamllit.core.episode import EpisodeBatch
from mamllit.data import EpisodicDataModule
from mamllit.engine.compiling import should_compile
from mamllit.engine.evaluation import BATCH_NORMS
from mamllit.engine.meta_gradient import Execution, MetaGradient
from mamllit.engine.plain import mean_meta_loss
from mamllit.engine.stages import Memory
from mamllit.methods import Method
from mamllit.systems.episodic import EpisodicSystem
from mamllit.systems.groups import parameter_groups
from mamllit.systems.guard import NonFinite, finite, not_finite, roll_back
from mamllit.systems.handover import with_gradient
from mamllit.systems.reading import Normalisation


class MetaLearner(EpisodicSystem):
    """Meta-trains a method and evaluates it on fixed episodes.

    Args:
        method: what is learned; its parameters are the meta-parameters.
        optimizer: makes the meta-optimiser from the meta-parameters.
        execution: how the episodes of a meta-batch run: "plain", see `mamllit.engine.plain`, unchecked and uncompiled;
            or, faster and tested equal, "auto", "vmap", "loop" or a chunk size (see `mamllit.engine.meta_gradient`).
        compile: compile the training step: "auto" does so for runs of 2,000 steps or more, where a compiler is there and
            it pays (see `mamllit.engine.meta_gradient.MetaGradient`).
        memory: "keep" the activations of all inner steps for the outer gradient, or "recompute" them: the same gradient in the
            memory of one inner step.
        non_finite: when a meta-loss or meta-gradient is not finite, "stop" the run, saying where it comes from, with a
            checkpoint from before; or "skip" that update and count it in `skipped_steps`.
        lr_scheduler, eval_steps, report_step, log_every, diverged_above, batch_norm: see `EpisodicSystem`.

    Raises:
        ValueError: for numbers out of bounds; at `setup`, when the data's ways differ from the network's outputs.

    >>> import lightning as L
    >>> from mamllit import MAML, MLP, MetaLearner, Regression, SineDataModule
    >>> method = MAML(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean")
    >>> trainer = L.Trainer(max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    ...     enable_model_summary=False, accelerator="cpu", limit_val_batches=0)
    >>> trainer.fit(MetaLearner(method), datamodule=SineDataModule())
    >>> trainer.global_step
    2
    """

    def __init__(
        self,
        method: Method,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_steps: int = 10,
        report_step: int = 1,
        execution: Execution | Literal["plain"] = "auto",
        compile: bool | Literal["auto"] = "auto",
        memory: Memory = "keep",
        log_every: int = 50,
        non_finite: NonFinite = "stop",
        diverged_above: float | None = None,
        batch_norm: Sequence[Normalisation] = BATCH_NORMS,
    ) -> None:
        super().__init__(
            method, optimizer, lr_scheduler, eval_steps=eval_steps, report_step=report_step, log_every=log_every,
            diverged_above=diverged_above, batch_norm=batch_norm, execution="loop" if execution == "plain" else execution,
        )  # fmt: skip
        if non_finite not in ("stop", "skip"):
            raise ValueError(f"non_finite is {non_finite!r}; it must be 'stop' or 'skip'")
        self.plain = execution == "plain"
        if self.plain and (compile is True or memory != "keep"):
            raise ValueError(
                f"execution is 'plain', but compile is {compile!r} and memory {memory!r}; a plain step is neither compiled nor "
                "recomputed: use execution: loop for that"
            )
        self.compile_setting, self.memory = compile, memory
        self.non_finite = non_finite
        self.meta_gradient = MetaGradient(method, self.execution, memory=memory)
        self.under_way: tuple[EpisodeBatch, Tensor] | None = None  # the meta-batch of this step and its loss
        self.rolling_back = False  # a checkpoint of the state before this step is being written

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """The mean meta-loss of a meta-batch, with its gradient: Lightning calls `backward` on it, then the optimiser."""
        if self.plain:
            loss, logs = mean_meta_loss(self.method, batch.episodes)
        else:
            step = self.meta_gradient(batch.episodes)
            loss, logs = with_gradient(step.loss, step.gradient.values(), self.meta_parameters()), step.logs
        self.under_way = batch, loss.detach()
        if (self.global_step + 1) % self.log_every == 0:
            self.log_step(loss.detach(), logs, len(batch.number))
        return loss

    def meta_parameters(self) -> list[Tensor]:
        """Those that are trained, in the order of the meta-gradient."""
        return [value for value in self.method.parameters() if value.requires_grad]

    def log_step(self, loss: Tensor, logs: dict[str, Tensor], episodes: int) -> None:
        """The mean of all ranks, under "train/"."""
        values = {"train/meta_loss": loss, **{f"train/{name}": value for name, value in logs.items()}}
        self.log_dict(values, prog_bar=True, batch_size=episodes, sync_dist=True)
        self._log_episodes(self.global_step + 1, episodes * self.trainer.world_size)

    def _log_episodes(self, steps: int, meta_batch_size: int) -> None:
        """An axis for loggers that compares runs with different meta-batches: the number of episodes seen."""
        self.log("trainer/episodes", float(steps * self.trainer.accumulate_grad_batches * meta_batch_size))

    # ---- around the step -----------------------------------------------------------------------------------------

    def optimized(self) -> list[Any]:
        return parameter_groups(self.method)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if plain := getattr(self.data, "plain", None):
            raise ValueError(f"the data gives plain batches ({plain}), and MetaLearner trains on episodes; leave `plain` out")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        never = self.compile_setting == "auto" and (self.plain or not self.method.vectorised)
        setting = False if never else self.compile_setting
        compiled = should_compile(setting, int(self.trainer.max_steps), self.device)
        self.meta_gradient = MetaGradient(self.method, self.execution, compiled, self.memory)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if not isinstance(batch, EpisodeBatch):
            raise TypeError(
                f"a training step needs an EpisodeBatch, and got a {type(batch).__name__}: MetaLearner trains on episodes. "
                "Give the Trainer datamodule=..., a subclass of mamllit.data.ImageDataModule or EpisodicDataModule, not a "
                "DataLoader"
            )
        self.method.begin_iteration(self.global_step)

    def on_after_backward(self) -> None:
        """Leave the update out, or stop, where the meta-gradient (the mean of all ranks: the same decision) is not finite."""
        if not finite([value.grad for value in self.meta_parameters() if value.grad is not None]):
            assert self.under_way is not None
            not_finite(self, *self.under_way)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        data = self.data
        assert isinstance(data, EpisodicDataModule)
        self._log_episodes(self.global_step, data.meta_batch_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.skipped_steps = checkpoint.get("skipped_steps", 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped_steps"] = self.skipped_steps
        if self.rolling_back:
            roll_back(checkpoint)
