"""The table of a comparison: one table per number of shots, a row per method; and a CSV with all numbers unrounded."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from reproduction.comparison import Compared, Summary, summarise
from reproduction.orders import SHOTS
from reproduction.table import duration

COLUMNS = (1, 5, 10)
LEGEND = """\
Mean squared error on {episodes} meta-test tasks after n gradient steps, protocol `standard` (100 random query points per task);
the seeds meet the same tasks. Mean ± 95% interval over the tasks, each task's error averaged over the seeds first; in brackets
the least and the largest mean of one seed. Median, and share diverged (an error above {bound:g} or no number): of all tasks and
seeds. Training: the mean time of one seed, without the start of the process and the test. "-": not measured.
"""


def bound_of(compared: Compared) -> float:
    """The error above which an episode counts as diverged."""
    return float(compared.cell.document["model"]["init_args"]["diverged_above"])


def markdown(rows: Sequence[Compared]) -> str:
    """All tables and their legend, of the rows that have a run."""
    known = [row for row in rows if row.runs]
    if not known:
        return "Nothing is finished yet.\n"
    episodes = next(iter(known[0].runs[0].values.values())).shape[0]
    lines = [LEGEND.format(episodes=_episodes(known) or episodes, bound=bound_of(known[0]))]
    for shots in SHOTS:
        heads = ["method", *(f"{s} step{'s' * (s != 1)}" for s in COLUMNS), "at its own number of steps"]
        heads += [f"median {'/'.join(map(str, COLUMNS))}", f"diverged {'/'.join(map(str, COLUMNS))}"]
        heads += ["seeds", "iterations done / asked", "training"]
        lines += [f"K = {shots}", "", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        lines += [_line(row, f"standard/{shots}-shot") for row in known]
        lines.append("")
    return "\n".join([*lines, *published(known)])


def _episodes(rows: Sequence[Compared]) -> str:
    counts = {
        run.values[name].shape[0] for row in rows for run in row.runs for name in run.values if name.startswith("standard")
    }
    return " or ".join(f"{count:,}" for count in sorted(counts))


def _line(row: Compared, evaluation: str) -> str:
    summaries = {steps: _summary(row, evaluation, steps) for steps in COLUMNS}
    own = row.cell.report_step
    alone = _summary(row, evaluation, own) if own not in COLUMNS else None
    cells = [row.name, *(_mean(summaries[steps]) for steps in COLUMNS)]
    cells.append(f"{own}: {_mean(alone)}" if alone else "")
    cells.append(" / ".join(_short(s.median) if s else "-" for s in summaries.values()))
    cells.append(" / ".join(f"{100 * s.diverged:.2f}%" if s else "-" for s in summaries.values()))
    cells += [", ".join(str(run.seed) for run in row.runs), _done(row), _training(row)]
    return f"| {' | '.join(cells)} |"


def _summary(row: Compared, evaluation: str, steps: int) -> Summary | None:
    errors = row.errors(evaluation, steps)
    return None if errors is None else summarise(errors, bound_of(row))


def _mean(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    spread = f" ({_short(min(summary.seeds))} to {_short(max(summary.seeds))})" if len(summary.seeds) > 1 else ""
    return f"{_short(summary.mean)} ± {_short(summary.ci95)}{spread}"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"


def _done(row: Compared) -> str:
    done = sorted({run.steps_done for run in row.runs})
    return f"{' or '.join(f'{steps:,}' for steps in done)} / {row.cell.max_steps:,}"


def _training(row: Compared) -> str:
    seconds = [run.seconds for run in row.runs if run.seconds is not None]
    return duration(sum(seconds) / len(seconds) if seconds else None)


def published(rows: Sequence[Compared]) -> list[str]:
    """The cells that a paper gives, beside what was measured under its protocol."""
    lines = []
    for row in rows:
        for evaluation, values in row.cell.published.items():
            for steps, value in sorted(values.items()):
                if summary := _summary(row, evaluation, steps):
                    lines.append(f"| {row.name} | {evaluation} | {steps} | {_mean(summary)} | {value:g} | {_done(row)} |")
    if not lines:
        return []
    heads = ["method", "tasks", "steps", "measured", "published", "iterations done / asked"]
    about = "Published cells, beside the same protocol (`paper`: 600 tasks, as many query points as shots):"
    return [about, "", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", *lines, ""]


FIELDS = (
    "cell", "tasks", "steps", "mean", "ci95", "median", "diverged", "seeds", "seed_means", "iterations_done",
    "iterations_asked", "seconds", "commits",
)  # fmt: skip


def write_csv(rows: Sequence[Compared], path: Path) -> None:
    """All evaluation sets and numbers of steps."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(line for row in rows if row.runs for line in _records(row))


def _records(row: Compared) -> Iterator[list[object]]:
    def words(values: Sequence[object]) -> str:
        return " ".join(map(str, values))

    for evaluation in row.runs[0].values:
        for steps in range(row.steps_known(evaluation) + 1):
            s = _summary(row, evaluation, steps)
            assert s is not None
            yield [
                row.cell.name, evaluation, steps, s.mean, s.ci95, s.median, s.diverged, words([run.seed for run in row.runs]),
                words(s.seeds), words([run.steps_done for run in row.runs]), row.cell.max_steps,
                words([run.seconds for run in row.runs]), words([run.commit for run in row.runs]),
            ]  # fmt: skip
