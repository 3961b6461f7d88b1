"""An alarm for inner loops that overshoot: it warns before the losses become NaN."""

import warnings

import lightning as L
import torch

from mamllit.core.tree import item, tree_map
from mamllit.data import EpisodicDataModule
from mamllit.engine.sharpness import sharpness
from mamllit.methods import InnerLoopMethod
from mamllit.systems import MetaLearner

BOUND = 2.0  # see `mamllit.engine.sharpness`


class SharpnessAlarm(L.Callback):
    """After each validation of a fit, log how sharp the support losses of validation tasks are, in units of the inner step.

    `sharpness/median` and `sharpness/largest` over the tasks, and `sharpness/above_2`, the share of tasks beyond the bound,
    where each inner step overshoots by more than the last. It warns once, when a task first exceeds the bound.

    Args:
        tasks: how many, the first of the validation set, >= 1. Each takes the time of some twenty inner steps.

    Raises:
        ValueError: for a number below 1.
        TypeError: at the start of a fit, for a method without an inner loop, or whose inner loop runs on trajectories.
    """

    def __init__(self, tasks: int = 20) -> None:
        if tasks < 1:
            raise ValueError(f"tasks is {tasks}; it must be >= 1")
        self.tasks, self._told = tasks, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        method = getattr(pl_module, "method", None)
        if not isinstance(pl_module, MetaLearner) or not isinstance(method, InnerLoopMethod):
            raise TypeError(
                f"SharpnessAlarm watches inner loops on examples, and {type(method).__name__} has none here; leave it out"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not isinstance(pl_module, MetaLearner):
            return
        method, data = pl_module.method, pl_module.data
        assert isinstance(method, InnerLoopMethod) and isinstance(data, EpisodicDataModule)
        evaluation = data.evaluation_sets("val")[0]
        episodes = data.episodes(evaluation, 0, min(self.tasks, evaluation.episodes)).episodes
        support = tree_map(lambda tensor: tensor.to(pl_module.device), episodes.support)
        found = torch.tensor([sharpness(method, item(support, i)) for i in range(len(support.x))])
        above = int((~(found <= BOUND)).sum())
        values = {"median": float(found.median()), "largest": float(found.max()), "above_2": above / len(found)}
        for logger in trainer.loggers:
            logger.log_metrics({f"sharpness/{name}": value for name, value in values.items()}, trainer.global_step)
        if above and not self._told:
            self._told = True
            warnings.warn(
                f"the inner loop overshoots in {above} of {len(found)} validation tasks after {trainer.global_step} steps: the "
                f"support loss is up to {values['largest'] / BOUND:.3g} times too sharp for its step; use a smaller inner_lr "
                "and more inner_steps",
                stacklevel=1,
            )
