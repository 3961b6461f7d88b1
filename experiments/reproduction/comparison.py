"""Methods on the same tasks: runs that train and test in one go, and what they measured, all seeds of a method together.

A run's state is in its directory, as `mamllit fit` leaves it: it is finished when it was tested after its last checkpoint was
written. So a stopped comparison goes on where it was.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reproduction.cells import Cell
from reproduction.work import Options, mamllit, newest_run, steps_of, train

STEPS = 10  # gradient steps that every method is tested after, where it makes any


@dataclass(frozen=True)
class Run:
    """One seed: its test errors by evaluation set ("standard/10-shot"), [episodes, inner steps + 1] float64."""

    seed: int
    values: dict[str, Tensor]
    steps_done: int
    seconds: float | None
    commit: str


@dataclass(frozen=True)
class Compared:
    """A method: its cell, and the runs that are finished, which met the same test episodes."""

    cell: Cell
    runs: Sequence[Run]

    @property
    def name(self) -> str:
        """ "maml, first order" for the cell maml/sine_10shot_first_order."""
        folder, _, stem = self.cell.name.partition("/")
        words = [folder, *stem.split("shot", 1)[-1].lstrip("_").split("_")]
        return f"{words[0]}, {' '.join(words[1:])}" if words[1:] != [""] else words[0]

    def steps_known(self, evaluation: str) -> int:
        """The number of inner steps that all runs were tested after at most; -1 without a run."""
        return min((run.values[evaluation].shape[1] - 1 for run in self.runs if evaluation in run.values), default=-1)

    def errors(self, evaluation: str, steps: int) -> Tensor | None:
        """[seeds, episodes] after `steps` inner steps, None where that was not measured."""
        if not 0 <= steps <= self.steps_known(evaluation):
            return None
        return torch.stack([run.values[evaluation][:, steps] for run in self.runs if evaluation in run.values])


def eval_steps(cell: Cell) -> int:
    """The cell's own number of inner steps at a test, at least STEPS; none where the cell adapts nothing (an oracle)."""
    own: int = cell.document["model"]["init_args"]["eval_steps"]
    return max(own, STEPS) if own else 0


def asked_steps(cell: Cell, options: Options) -> int:
    """Meta-updates to train for: as asked, and no more than the cell's own number."""
    return min(options.steps or cell.max_steps, cell.max_steps)


def finish(cell: Cell, seed: int, options: Options) -> Path:
    """The directory of a run that is trained as far as asked for, and tested; does what is missing.

    Raises:
        Failed: when mamllit fails, or the training stops before its last step.
    """
    steps = asked_steps(cell, options)
    wanted = replace(
        options, steps=steps, more=["--model.eval_steps", str(eval_steps(cell)), "--wandb", "disabled", *options.more]
    )
    run = train(cell, seed, wanted, test=True)
    if not was_tested(run, eval_steps(cell)):
        root = options.run_root(cell)
        mamllit(
            "test", "-c", cell.path, "--seed_everything", seed, "--trainer.default_root_dir", root,
            "--ckpt_path", run / "checkpoints" / "last.ckpt", *wanted.arguments(cell),
        )  # fmt: skip
    return run


def was_tested(run: Path, steps: int) -> bool:
    """Whether the newest weights of a run were tested, after so many inner steps."""
    episodes, checkpoint = run / "episodes.csv", run / "checkpoints" / "last.ckpt"
    if not (checkpoint.exists() and episodes.exists()) or episodes.stat().st_mtime < checkpoint.stat().st_mtime:
        return False
    results = json.loads((run / "result.json").read_text())["results"]
    return any(entry["split"] == "test" and len(entry["mean"]) > steps for entry in results.values())


def collect(cells: Sequence[Cell], seeds: Sequence[int], options: Options) -> list[Compared]:
    """What the finished runs measured, cell by cell."""
    return [Compared(cell, [run for seed in seeds if (run := read(cell, seed, options))]) for cell in cells]


def read(cell: Cell, seed: int, options: Options) -> Run | None:
    """A finished run; None where there is none, or one shorter than what is asked for."""
    folder = newest_run(options.run_root(cell), seed)
    done = steps_of(folder / "checkpoints" / "last.ckpt")
    if done < asked_steps(cell, options) or not was_tested(folder, eval_steps(cell)):
        return None
    result = json.loads((folder / "result.json").read_text())
    fit = result.get("fit", {})
    commit = fit.get("commit") or result.get("commit")
    return Run(seed, _values(folder / "episodes.csv", result["metric"]), done, fit.get("seconds"), _short(commit))


def _short(commit: str | None) -> str:
    return "unknown" if commit is None else commit[:7] + "-dirty" * commit.endswith("-dirty")


_read: dict[tuple[Path, float], dict[str, Tensor]] = {}


def _values(path: Path, metric: str) -> dict[str, Tensor]:
    """The errors of a run's episodes.csv, kept: a table is written many times."""
    key = (path, path.stat().st_mtime)
    if key not in _read:
        found: dict[str, dict[tuple[int, int], float]] = {}
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["set"], {})[int(row["episode"]), int(row["steps"])] = float(row[metric])
        _read[key] = {name: _square(values) for name, values in found.items()}
    return _read[key]


def _square(values: dict[tuple[int, int], float]) -> Tensor:
    episodes, steps = (max(index[i] for index in values) + 1 for i in (0, 1))
    return torch.tensor([[values[i, s] for s in range(steps)] for i in range(episodes)], dtype=torch.float64)


@dataclass(frozen=True)
class Summary:
    """All seeds of a method after a number of steps.

    `mean` and `ci95`: of the episodes' values, each averaged over the seeds first, for the seeds meet the same episodes;
    `seeds`: each seed's own mean; `median` and `diverged` (the share above a bound, or not finite): of all values of all seeds.
    """

    mean: float
    ci95: float
    seeds: Sequence[float]
    median: float
    diverged: float


def summarise(errors: Tensor, bound: float) -> Summary:
    """Of `errors` [seeds, episodes]."""
    mean, ci95 = interval(errors.mean(0))
    lost = ~(errors <= bound)  # a value that is no number is above every bound
    median = float(errors.nan_to_num(nan=math.inf).flatten().median())
    return Summary(mean, ci95, errors.mean(1).tolist(), median, float(lost.double().mean()))


def interval(values: Tensor) -> tuple[float, float]:
    """Mean of `values` [episodes] and 1.96 standard errors of it."""
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))
