"""A short cut through Lightning's training loop, for the plain case: one process, full precision, no clipping, one optimiser.

Around a compiled sine step of one millisecond, Lightning spends another half on what is known in advance not to matter there:
closures in closures, a profiler context around each call, looking up who overrides which hook, and autograd's engine to hand
over a gradient that is ready. `LeanSteps` does what `_TrainingEpochLoop.advance` does for one batch, in the same order, less
that. Whatever is not plain takes Lightning's own way, and so does each version of Lightning that this was not read against.
"""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy

from mamllit.data import EpisodicDataModule
from mamllit.systems.handover import hand_over
from mamllit.systems.hooks import PER_STEP

VERSIONS = ("2.6.",)  # of Lightning, whose loop does what is done here
WITH_HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")  # of callbacks; others are not plain
PATCHABLE = ("training_step", "backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
# those that only call the closure, and then update
OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad)


def take_lean_steps(trainer: L.Trainer, module: Any, known: bool) -> bool:
    """Let the fit that begins take the short cut, if it is plain; returns whether it does. To be called when it starts.

    `known`: the module's class is the one whose step is done here, and no subclass, which may change what a step does.
    """
    loop = trainer.fit_loop.epoch_loop
    vars(loop).pop("advance", None)  # of a fit before
    if known and plain(trainer, module):
        loop.advance = LeanSteps(trainer, module).advance  # type: ignore[method-assign]
        return True
    return False


def plain(trainer: L.Trainer, module: Any) -> bool:
    """Whether nothing takes part in a step but the module's own step and its optimiser, and Lightning is one that is known."""
    if not L.__version__.startswith(VERSIONS):
        return False
    # private, so another version need not have them
    from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    loop, strategy, callbacks = trainer.fit_loop.epoch_loop, trainer.strategy, trainer.callbacks  # type: ignore[attr-defined]
    return (
        type(loop) is _TrainingEpochLoop
        and type(loop.automatic_optimization) is _AutomaticOptimization
        and type(strategy) is SingleDeviceStrategy
        and type(strategy.precision_plugin) is Precision
        and id(strategy.model) == id(module)
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        and trainer.gradient_clip_val is None
        and [type(optimizer) in OPTIMIZERS for optimizer in trainer.optimizers] == [True]
        and isinstance(trainer.datamodule, EpisodicDataModule)  # type: ignore[attr-defined]
        and not any(name in vars(module) for name in PATCHABLE)
        and not any(callable(getattr(module, name)) for name in PER_STEP)
        and not any(callable(getattr(c, name)) for c in callbacks for name in PER_STEP if name not in WITH_HOOKS)
        and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters())
    )


class LeanSteps:
    """Stands in for the epoch loop's `advance` during one fit."""

    def __init__(self, trainer: L.Trainer, module: Any) -> None:
        self.trainer, self.module = trainer, module
        self.loop = trainer.fit_loop.epoch_loop
        self.ordinary = self.loop.advance
        self.hooks = {name: self._hooks(name) for name in WITH_HOOKS}

    def _hooks(self, name: str) -> list[Callable[..., Any]]:
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [getattr(callback, name) for callback in callbacks if callable(getattr(callback, name))]

    def _call(self, name: str, *args: Any) -> None:
        if hooks := self.hooks[name]:
            self.module._current_fx_name = name  # by which Lightning knows what a callback logs
            for hook in hooks:
                hook(self.trainer, self.module, *args)
            self.module._current_fx_name = None

    def advance(self, data_fetcher: Any) -> None:
        """One batch."""
        loop, trainer, module, progress = self.loop, self.trainer, self.module, self.loop.batch_progress
        first = loop._restarting or progress.current.ready == 0
        changed = trainer.accumulate_grad_batches != 1 or trainer.lightning_module is not module
        if first or changed or loop.automatic_optimization._skip_backward:  # weight averaging sets the last
            self.ordinary(data_fetcher)
            return
        connector, data = trainer._logger_connector, trainer.datamodule  # type: ignore[attr-defined]
        batch, _, _ = next(data_fetcher)
        number = loop.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = data.on_before_batch_transfer(batch, 0)
        batch = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        batch = data.on_after_batch_transfer(batch, 0)
        progress.increment_ready()
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, number)
        progress.increment_started()
        module.logged = False
        output = self._update(batch)
        progress.increment_processed()
        loop.update_lr_schedulers("step", update_plateau_schedulers=False)
        if loop._num_ready_batches_reached():
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", output, batch, number)
        if module.logged:  # else the values that it would gather are those it has
            connector.on_batch_end()
        else:
            results = loop._results
            results.batch = results.batch_size = None
        progress.increment_completed()
        connector.update_train_step_metrics()

    def _update(self, batch: Any) -> dict[str, Any]:
        """What `_AutomaticOptimization.run` does: the meta-gradient and the optimiser's step."""
        module, optimizer = self.module, self.trainer.optimizers[0]
        counts = self.loop.automatic_optimization.optim_progress.optimizer
        counts.step.increment_ready()
        module._current_fx_name = "training_step"
        step = module.meta_step(batch)
        module._current_fx_name = None
        counts.zero_grad.increment_ready()
        counts.zero_grad.increment_started()
        counts.zero_grad.increment_completed()
        hand_over(step.gradient.values(), module.trained)
        module.check_gradient()
        self._call("on_before_optimizer_step", optimizer)
        optimizer.step()
        counts.step.increment_completed()
        return {"loss": step.loss.detach()}
