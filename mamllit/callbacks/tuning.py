"""Tunes the step size of a method's adaptation on the validation episodes, before a test."""

from collections.abc import Sequence
from typing import Any

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
    episodes. A candidate's value is its mean over the validation episodes; one that is not finite on some task is not chosen.

    Args:
        candidates: step sizes to try.
        steps: inner steps after which they are compared.
        decays: values of the method's `decay` to try with each step size; none where it has none.
        episodes: validation episodes to compare on; None for all.

    Raises:
        ValueError: for no candidate, fewer than one step or episode; at the test, for a method without `inner_lr`, or, with
            `decays`, without `decay`.
    """

    def __init__(
        self,
        candidates: Sequence[float] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
        steps: int = 10,
        decays: Sequence[float] = (),
        episodes: int | None = None,
    ) -> None:
        if not candidates:
            raise ValueError("candidates is empty; name at least one step size")
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be >= 1")
        if episodes is not None and episodes < 1:
            raise ValueError(f"episodes is {episodes}; it must be >= 1")
        self.candidates, self.steps = tuple(candidates), steps
        self.decays, self.episodes = tuple(decays), episodes
        self.values: dict[float | tuple[float, float], float] = {}  # by step size, or step size and decay

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, EpisodicSystem) and isinstance(data, EpisodicDataModule)
        method = pl_module.method
        if not isinstance(getattr(method, "inner_lr", None), float):
            raise ValueError(f"{type(method).__name__} has no scalar inner_lr to tune; leave TunedStepSize out")
        if self.decays and not isinstance(getattr(method, "decay", None), float):
            raise ValueError(f"{type(method).__name__} has no scalar decay to tune; leave the decays of TunedStepSize out")
        (evaluation,) = data.evaluation_sets("val")
        episodes = data.episodes(evaluation, 0, min(self.episodes or evaluation.episodes, evaluation.episodes)).episodes
        moved = tree_map(lambda tensor: tensor.to(pl_module.device), episodes)
        cells: list[float | tuple[float, float]] = list(self.candidates)
        if self.decays:
            cells = [(lr, decay) for lr in self.candidates for decay in self.decays]
        for cell in cells:
            _set(method, cell)
            self.values[cell] = float(evaluate(method, moved, self.steps)[:, -1].double().mean())
        sense = -1 if method.objective.higher_is_better else 1
        usable = {cell: value for cell, value in self.values.items() if torch.tensor(value).isfinite()}
        best = min(usable, key=lambda cell: sense * usable[cell]) if usable else min(cells)  # type: ignore[type-var]
        _set(method, best)
        if trainer.is_global_zero:
            shown = ", ".join(f"{_named(cell)}: {value:.4g}" for cell, value in self.values.items())
            metric = method.objective.metric_name
            print(f"inner_lr {_named(best)}, tuned on meta-val ({metric} after {self.steps} steps: {shown})")


def _set(method: Any, cell: float | tuple[float, float]) -> None:
    if isinstance(cell, tuple):
        method.inner_lr, method.decay = cell
    else:
        method.inner_lr = cell


def _named(cell: float | tuple[float, float]) -> str:
    return f"{cell[0]:g} with decay {cell[1]:g}" if isinstance(cell, tuple) else f"{cell:g}"
