"""The share of a bare loop's speed that `mamllit fit` reaches: what Lightning costs in a step of the sine run.

A callback of the fit stops the clock after every block of steps and runs a block of the bare loop, which has a copy of the
method: the same sampler, compiled step and optimiser, and nothing else. So both alternate in one process, and neither
compilation nor start-up is timed.
"""

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from mamllit.cli import program as cli
from mamllit.core.episode import EpisodeBatch
from mamllit.engine.meta_gradient import MetaGradient
from suite.report import duration

CELL = Path(__file__).parents[2] / "maml/sine_10shot.yaml"
WARM = 3  # blocks that are not counted: compilation, and the optimiser's first steps


class Bare:
    """The loop without a Trainer."""

    def __init__(self, learner: Any, data: Any) -> None:
        self.method = copy.deepcopy(learner.method)
        self.meta_gradient = MetaGradient(self.method, learner.execution, learner.meta_gradient.compiled, learner.memory)
        self.trained = [value for value in self.method.parameters() if value.requires_grad]
        self.optimizer = learner._optimizer(self.trained)
        self.batches: Iterator[EpisodeBatch] = map(data.build, iter(data.train_dataloader()))

    def step(self) -> None:
        found = self.meta_gradient(next(self.batches).episodes)
        for value, gradient in zip(self.trained, found.gradient.values(), strict=True):
            value.grad = gradient
        self.optimizer.step()


@dataclass
class Turns(L.Callback):
    """Seconds per step of both, block by block."""

    block: int
    fit: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    _loop: Bare | None = None
    _left: int = 0
    _start: float = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._left -= 1
        if self._left > 0:
            return
        now = time.perf_counter()
        if self._loop is None:
            self._loop = Bare(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        else:
            self.fit.append((now - self._start) / self.block)
            start = time.perf_counter()
            for _ in range(self.block):
                self._loop.step()
            self.bare.append((time.perf_counter() - start) / self.block)
        self._left, self._start = self.block, time.perf_counter()


def measure(out: Path, rounds: int, block: int, compiled: str, threads: int) -> Turns:
    """`rounds` blocks of either, after WARM of them; `mamllit fit` runs with its own callbacks and the CSV logger."""
    turns = Turns(block)
    steps = 1 + block * (rounds + WARM)
    arguments = ["fit", "-c", str(CELL), "--trainer.default_root_dir", str(out / "share"), "--wandb", "disabled"]
    arguments += ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(10 * steps)]
    arguments += ["--model.compile", compiled, "--threads", str(threads), "--test_after_fit", "false"]
    _fit(arguments, turns)
    del turns.fit[:WARM], turns.bare[:WARM]
    return turns


def _fit(arguments: list[str], turns: Turns) -> None:
    """The command with one callback more, the last: it comes in with the defaults of a Trainer."""
    before = cli.TRAINER_DEFAULTS
    cli.TRAINER_DEFAULTS = {**before, "callbacks": turns}
    try:
        cli.run(arguments)
    finally:
        cli.TRAINER_DEFAULTS = before


def markdown(turns: Turns) -> str:
    """One line: the medians, and the share with its spread over the blocks."""
    shares = sorted(bare / fit for bare, fit in zip(turns.bare, turns.fit, strict=True))
    low, high = shares[len(shares) // 4], shares[3 * len(shares) // 4]
    return (
        f"bare loop {duration(statistics.median(turns.bare))}, mamllit fit {duration(statistics.median(turns.fit))}: "
        f"{statistics.median(shares):.1%} of its speed (middle half {low:.1%} to {high:.1%}), "
        f"{len(shares)} blocks of {turns.block} steps each\n"
    )
