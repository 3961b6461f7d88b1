"""How well methods know their own errors, side by side: negative log-likelihood and coverage, and who is better than MAML."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.data import EpisodicDataModule
from mamllit.engine.evaluation import evaluate
from mamllit.engine.uncertainty import predictive, score
from mamllit.methods import Method
from reproduction.comparison import interval
from reproduction.orders import Verdict

LEVEL = 0.9  # of the interval whose coverage is measured
NOISE = {"sine_line": 0.3, "frequency_sine": 0.0255}  # the data's own; of the frequency tasks 0.01 times the mean amplitude
GRID = [0.025 * 2 ** (i / 2) for i in range(17)]  # standard deviations to tune from, 0.025 to 6.4


@dataclass(frozen=True)
class Judged:
    """A method with one noise around its models, all its seeds; `nll` and `covered` are per task, means over the seeds, [T].

    `noise` is the standard deviation: the data's own for all, or one `tuned` on meta-val for the least mean NLL (the mean of
    the seeds' choices stands here). `error` is the mean squared error [T].
    """

    name: str
    seeds: int
    steps_done: Sequence[int]
    noise: float
    tuned: bool
    nll: Tensor
    covered: Tensor
    error: Tensor


@dataclass(frozen=True)
class Trained:
    """A method with its weights after so many meta-updates, tested after `inner_steps`."""

    method: Method
    data: EpisodicDataModule
    inner_steps: int
    steps_done: int


def judge(name: str, runs: Sequence[Trained], noise: float, tasks: int) -> list[Judged]:
    """By the data's own noise, and by a tuned one, on the test tasks with as many shots as in meta-training."""
    parts: dict[bool, list[tuple[Tensor, Tensor, Tensor]]] = {False: [], True: []}
    chosen: dict[bool, list[float]] = {False: [], True: []}
    for run in runs:
        evaluation = next(e for e in run.data.evaluation_sets("test") if e.shots == run.data.shots)
        episodes = run.data.episodes(evaluation, 0, min(tasks, evaluation.episodes)).episodes
        outputs = predictive(run.method, episodes, run.inner_steps)
        error = evaluate(run.method, episodes, run.inner_steps)[:, -1]
        for tuned in parts:
            own = tune(run, tasks) if tuned else noise
            found = score(outputs, episodes.query.y, own, LEVEL)
            parts[tuned].append((found.nll, found.coverage, error))
            chosen[tuned].append(own)
    done, rows = sorted({run.steps_done for run in runs}), []
    for tuned, of_seeds in parts.items():
        nll, covered, error = (torch.stack(values).double().mean(0) for values in zip(*of_seeds, strict=True))
        rows.append(Judged(name, len(runs), done, sum(chosen[tuned]) / len(runs), tuned, nll, covered, error))
    return rows


def tune(run: Trained, tasks: int) -> float:
    """The standard deviation of GRID under which the meta-val tasks are most likely."""
    (evaluation,) = run.data.evaluation_sets("val")
    episodes: Episode = run.data.episodes(evaluation, 0, min(tasks, evaluation.episodes)).episodes
    outputs = predictive(run.method, episodes, run.inner_steps)
    nll = {noise: float(score(outputs, episodes.query.y, noise, LEVEL).nll.mean()) for noise in GRID}
    return min(GRID, key=lambda noise: nll[noise])


HEADS = ("method", "seeds", "iterations", "tasks", "MSE", "noise", "NLL", "median NLL", "in the 90% interval")


def markdown(rows: Sequence[Judged]) -> str:
    """The table of one family of tasks."""
    lines = [f"| {' | '.join(HEADS)} |", "| --- " * len(HEADS) + "|"]
    for row in rows:
        error, nll, covered = (interval(values) for values in (row.error, row.nll, row.covered))
        cells = [row.name, str(row.seeds), " or ".join(f"{n:,}" for n in row.steps_done), str(len(row.nll))]
        cells += [f"{error[0]:.3f} ± {error[1]:.3f}", f"{row.noise:.3g}{', tuned' if row.tuned else ''}"]
        cells += [f"{nll[0]:.2f} ± {nll[1]:.2f}", f"{float(row.nll.median()):.2f}"]
        cells.append(f"{100 * covered[0]:.1f} ± {100 * covered[1]:.1f}%")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(table: str, rows: Sequence[Judged], base: str, others: Sequence[str]) -> list[Verdict]:
    """Whether each of the others is better calibrated than `base`: less NLL (95% interval of the paired difference below zero)
    and a coverage nearer to the level; under the data's own noise, and under each method's tuned one."""
    found = []
    for other in others:
        for tuned in (False, True):
            claim = f"{table}: {other} better calibrated than {base}, {'tuned noise' if tuned else 'the noise of the data'}"
            pair: list[Any] = [next((r for r in rows if r.name == name and r.tuned == tuned), None) for name in (other, base)]
            if None in pair:
                found.append(Verdict(claim, "not measured", ""))
                continue
            mean, ci95 = interval(pair[0].nll - pair[1].nll)
            covered = [float(judged.covered.mean()) for judged in pair]
            nearer = abs(covered[0] - LEVEL) < abs(covered[1] - LEVEL)
            numbers = f"NLL {mean:+.3f} ± {ci95:.3f}; {100 * covered[0]:.1f}% and {100 * covered[1]:.1f}% in the 90% interval"
            found.append(Verdict(claim, "holds" if mean + ci95 < 0 and nearer else "does not hold", numbers))
    return found


def title(folder: Path) -> str:
    """How a run's figures are named."""
    return f"{folder.parent.parent.name}, {folder.parent.name}, {folder.name}"
