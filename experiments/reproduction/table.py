"""The table: one row per checkpoint, evaluation set and number of inner steps, beside the paper's value."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reproduction.cells import Cell
from reproduction.work import RECORD

Value = tuple[float, float]  # a mean over episodes and the half-width of its 95% interval


@dataclass(frozen=True)
class Row:
    """What was measured of one cell: `transductive` (or without batch norm) and `inductive`, each mean and interval.

    `batch_norm_costs` is inductive less transductive, with the interval of the paired difference: the episodes are the same.
    `difference` is transductive less published; `verdict` says whether it lies within the published interval (the measured
    one where the paper gives none), above or below it. Steps are meta-updates, `inner_steps` excepted.
    """

    cell: str
    seed: int
    checkpoint: str
    episodes: str
    inner_steps: int
    metric: str
    transductive: Value
    inductive: Value | None
    batch_norm_costs: Value | None
    published: float | None
    published_ci95: float | None
    steps_done: int
    steps_asked: int
    seconds: float | None
    commit: str

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.transductive[0] - self.published

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return ""
        bound = self.transductive[1] if self.published_ci95 is None else self.published_ci95
        if abs(self.difference) <= bound + 1e-9:  # a difference of two decimals, which are not exact
            return "within"
        return "above" if self.difference > 0 else "below"


def collect(cells: Sequence[Cell], out: Path) -> list[Row]:
    """The rows of all finished evaluations of the cells in the folder `out`, in the order of cells, seeds and names."""
    records = []
    for cell in cells:
        found = (out / "evaluations" / cell.name).glob(f"seed_*/*/{RECORD}")
        records += [(cell, path) for path in sorted(found, key=_order)]
    return [row for cell, path in records for row in _rows(cell, path)]


def _order(path: Path) -> tuple[int, bool, str]:
    return int(path.parts[-3].removeprefix("seed_")), path.parts[-2].startswith("best"), path.parts[-2]


def _rows(cell: Cell, path: Path) -> Iterator[Row]:
    record, result = (json.loads(file.read_text()) for file in (path, path.parent / "result.json"))
    values = _per_episode(path.parent / "episodes.csv", result["metric"])
    training = record["training"]
    for name, entry in result["results"].items():
        if entry["split"] != "test" or entry["batch_norm"] in ("inductive", "population"):
            continue
        other = result["results"].get(f"{name}/inductive")
        for steps in (step for step in cell.inner_steps if step < len(entry["mean"])):
            published = cell.published.get(name, {}).get(steps)
            yield Row(
                cell=cell.name,
                seed=record["seed"],
                checkpoint=record["rule"],
                episodes=f"{name}, {entry['episodes']} x {entry['queries']}",
                inner_steps=steps,
                metric=result["metric"],
                transductive=_value(entry, steps),
                inductive=_value(other, steps) if other else None,
                batch_norm_costs=paired(values[name, "inductive", steps], values[name, "transductive", steps])
                if other
                else None,
                published=published,
                published_ci95=cell.published_ci95.get(name, {}).get(steps),
                steps_done=result["steps_done"],
                steps_asked=training["steps_asked"],
                seconds=training["seconds"],
                commit=_short(training["commit"]),
            )


def _short(commit: str | None) -> str:
    return "unknown" if commit is None else commit[:7] + "-dirty" * commit.endswith("-dirty")


def _value(entry: dict[str, Any], steps: int) -> Value:
    return float(entry["mean"][steps]), float(entry["ci95"][steps])  # "inf" and "nan" are words in JSON


def _per_episode(path: Path, metric: str) -> dict[tuple[str, str, int], dict[str, float]]:
    values: dict[tuple[str, str, int], dict[str, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values.setdefault((row["set"], row["batch_norm"], int(row["steps"])), {})[row["episode"]] = float(row[metric])
    return values


def paired(first: dict[str, float], second: dict[str, float]) -> Value:
    """Mean of first less second over the episodes, and 1.96 standard errors of that mean."""
    differences = [first[episode] - second[episode] for episode in first]
    mean = math.fsum(differences) / len(differences)
    variance = math.fsum((value - mean) ** 2 for value in differences) / (len(differences) - 1)
    return mean, 1.96 * math.sqrt(variance / len(differences))


# ---- what is written -------------------------------------------------------------------------------------------------

HEADER = (
    "cell", "seed, checkpoint", "episodes", "after", "measured (transductive)", "inductive", "inductive - transductive",
    "published", "measured - published", "in its interval?", "iterations done / asked", "training", "commit",
)  # fmt: skip
LEGEND = """\
Measured: mean over the test episodes ± 95% interval (1.96 standard errors over the episodes; it says nothing of another seed).
Accuracies in per cent. Episodes: protocol, number x queries per class. Transductive: the query batch is normalised by its own
statistics, as in the paper; inductive: by those of the support alone; a network without batch norm has one value. The
difference of the two is paired, over the same episodes. Checkpoint "last" is the paper's rule, "best" the best on meta-val. In
its interval: whether the measured mean lies within the published ± (where the paper gives none, within the measured ±).
"""


def markdown(rows: Sequence[Row], title: str, problems: Sequence[str] = (), commands: Sequence[str] = ()) -> str:
    """The document: table, legend, what could not be run, and the commands that finish what is not at its full length."""
    lines = [f"# {title}", "", f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}", *map(_line, rows), "", LEGEND]
    if problems:
        lines += ["## Not in the table", "", *(f"- {problem}" for problem in problems), ""]
    if commands:
        lines += ["## To finish", "", *(f"    {command}" for command in commands), ""]
    return "\n".join(lines)


def _line(row: Row) -> str:
    percent = row.metric == "accuracy"

    def number(value: float, sign: str = "") -> str:
        return format(100 * value, f"{sign}.2f") if percent else format(value, f"{sign}.3f")

    def pair(value: Value | None, sign: str = "") -> str:
        return "" if value is None else f"{number(value[0], sign)} ± {number(value[1])}"

    published = "" if row.published is None else number(row.published)
    if row.published_ci95 is not None:
        published += f" ± {number(row.published_ci95)}"
    difference = "" if row.difference is None else number(row.difference, "+")
    cells = [
        row.cell, f"{row.seed}, {row.checkpoint}", row.episodes, f"{row.inner_steps} steps", pair(row.transductive),
        pair(row.inductive), pair(row.batch_norm_costs, "+"), published, difference, row.verdict,
        f"{row.steps_done:,} / {row.steps_asked:,}", duration(row.seconds), row.commit,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def duration(seconds: float | None) -> str:
    """Hours and minutes, or minutes and seconds of less than an hour."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows, unrounded, a mean and its interval in a column each."""
    pairs = ("transductive", "inductive", "batch_norm_costs")
    names = [name for f in fields(Row) for name in ((f.name, f"{f.name}_ci95") if f.name in pairs else (f.name,))]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "difference", "verdict"])
        for row in rows:
            cells: list[Any] = []
            for name, value in asdict(row).items():
                cells += list(value or ("", "")) if name in pairs else ["" if value is None else value]
            writer.writerow([*cells, "" if row.difference is None else row.difference, row.verdict])
