"""Tunes the step size of a method's adaptation on the validation episodes, before a test."""

from collections.abc import Sequence

import lightning as L
import torch

from mamllit.core.tree import tree_map
from mamllit.data import EpisodicDataModule
from mamllit.engine.evaluation import evaluate
from mamllit.systems.episodic import EpisodicSystem


class TunedStepSize(L.Callback):
    """Sets the method's `inner_lr` to the candidate that does best on meta-val after `steps` inner steps, and prints them all.

    For a network that was trained without an inner loop, and so has no step size of its own: the MAML paper's pretrained
    baseline has "an automatically tuned step size". The choice is made once, at the shots of meta-training, never on test
    episodes. A candidate's value is its mean over the validation episodes; one that diverges on any task loses.

    Args:
        candidates: step sizes to try.
        steps: inner steps after which they are compared.

    Raises:
        ValueError: for no candidate, or fewer than one step; at the test, for a method without `inner_lr`.
    """

    def __init__(self, candidates: Sequence[float] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1), steps: int = 10) -> None:
        if not candidates:
            raise ValueError("candidates is empty; name at least one step size")
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be >= 1")
        self.candidates, self.steps = tuple(candidates), steps
        self.values: dict[float, float] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, EpisodicSystem) and isinstance(data, EpisodicDataModule)
        method = pl_module.method
        if not isinstance(getattr(method, "inner_lr", None), float):
            raise ValueError(f"{type(method).__name__} has no number inner_lr to tune; leave TunedStepSize out")
        (evaluation,) = data.evaluation_sets("val")
        episodes = data.episodes(evaluation).episodes
        moved = tree_map(lambda tensor: tensor.to(pl_module.device), episodes)
        for candidate in self.candidates:
            method.inner_lr = candidate  # type: ignore[assignment]
            self.values[candidate] = float(evaluate(method, moved, self.steps)[:, -1].double().mean())
        sense = -1 if method.objective.higher_is_better else 1
        usable = {lr: value for lr, value in self.values.items() if torch.tensor(value).isfinite()}
        best = min(usable, key=lambda lr: sense * usable[lr]) if usable else min(self.candidates)
        method.inner_lr = best  # type: ignore[assignment]
        if trainer.is_global_zero:
            shown = ", ".join(f"{lr:g}: {value:.4g}" for lr, value in self.values.items())
            print(f"inner_lr {best:g}, tuned on meta-val ({method.objective.metric_name} after {self.steps} steps: {shown})")
