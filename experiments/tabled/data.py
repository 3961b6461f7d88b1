"""The results in experiments/results/, by cell and seed, and how one number of them is written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


@dataclass(frozen=True)
class Cell:
    """A cell's results, by seed, and the YAML file that says what the paper's run is."""

    name: str
    seeds: dict[int, dict[str, Any]]
    document: dict[str, Any]
    heading: str

    @property
    def steps_asked(self) -> int:
        return int(self.document["trainer"]["max_steps"])

    @property
    def report_step(self) -> int:
        return int(self.document["model"]["init_args"].get("report_step", 0))  # without an inner loop, 0

    @property
    def published(self) -> dict[str, dict[int, float]]:
        return (self.document.get("results") or {}).get("published") or {}

    @property
    def published_ci95(self) -> dict[str, dict[int, float]]:
        return (self.document.get("results") or {}).get("published_ci95") or {}

    @property
    def finished(self) -> "Cell | None":
        """The cell with the seeds that made all iterations and changed no setting; None without any, and for a demo."""
        if self.name.startswith("demo"):  # shorter than the paper's run
            return None
        made = {seed: record.get("of_steps", record["steps_done"]) for seed, record in self.seeds.items()}
        seeds = {s: r for s, r in self.seeds.items() if made[s] >= self.steps_asked and not r["changed"]}
        return replace(self, seeds=seeds) if seeds else None

    @property
    def streamed(self) -> bool:
        """Whether it is judged by streams, whose table is another."""
        return any(entry["protocol"].startswith("stream") for entry in self.first["results"].values())

    @property
    def first(self) -> dict[str, Any]:
        return next(iter(self.seeds.values()))

    @property
    def title(self) -> str:
        """The first line of the YAML file: "MAML, Omniglot 5-way 1-shot, convolutional"; a recipe says that it is one."""
        title = self.heading.removeprefix("#").strip().rstrip(".")
        return f"{title} (recipe)" if self.name.startswith("recipes/") and "recipe" not in title.lower() else title


@cache
def cells() -> list[Cell]:
    """All cells with a result, in the order of their names."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(RESULTS.rglob("seed_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(path.parent.relative_to(RESULTS).as_posix(), {})[record["seed"]] = record
    return [_cell(name, dict(sorted(seeds.items()))) for name, seeds in sorted(found.items())]


def cell(name: str, missing_ok: bool = False) -> Cell | None:
    """The cell of an experiment, without seeds where it has no result; None for no experiment, if that may be.

    Raises:
        FileNotFoundError: where there is no such experiment.
    """
    known = {cell.name: cell for cell in cells()}
    if name not in known and missing_ok and not (ROOT / "experiments" / f"{name}.yaml").is_file():
        return None
    return known.get(name) or _cell(name, {})


def _cell(name: str, seeds: dict[int, dict[str, Any]]) -> Cell:
    text = (ROOT / "experiments" / f"{name}.yaml").read_text(encoding="utf-8")
    return Cell(name, seeds, yaml.safe_load(text), text.split("\n", 1)[0])


# ---- one number -------------------------------------------------------------------------------------------------------


def number(metric: str, value: float | str | None, digits: int = 1) -> str:
    """An accuracy in per cent with `digits` decimals, rounded half up as one does by hand; an error with three digits."""
    if value is None:
        return ""
    if metric == "accuracy":
        return str((Decimal(str(value)) * 100).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
    return f"{float(value):.3g}"


def interval(metric: str, mean: float | None, ci95: float | None) -> str:
    """Mean ± 95% interval; with a second decimal where one would leave nothing of the interval."""
    if mean is None:
        return ""
    digits = 2 if metric == "accuracy" and ci95 is not None and ci95 < 0.0005 else 1
    unit = "%" if metric == "accuracy" else ""
    return number(metric, mean, digits) + (f" ± {number(metric, ci95, digits)}" if ci95 is not None else "") + unit


def measured(cell: Cell, name: str, step: int) -> str:
    """One seed: mean ± 95% interval over the episodes; several: the mean over the seeds, with the least and the largest."""
    metric = cell.first["metric"]
    entries = [r["results"][name] for r in cell.seeds.values() if name in r["results"]]
    found = [(e["mean"][step], e["ci95"][step]) for e in entries if step < len(e["mean"]) and e["mean"][step] is not None]
    if len(found) <= 1:
        return interval(metric, *found[0]) if found else ""
    means = [float(mean) for mean, _ in found]
    low, high = number(metric, min(means)), number(metric, max(means))
    return f"{interval(metric, sum(means) / len(means), None)} ({low} to {high})"


def episodes(entry: dict[str, Any], metric: str) -> str:
    per_class = " per class" if metric == "accuracy" else ""
    return f"{entry['protocol']}: {entry['episodes']:,} x {entry['queries']}{per_class}"


def length(cell: Cell) -> str:
    done = {f"{record['steps_done']:,}" for record in cell.seeds.values()}
    return f"{', '.join(sorted(done))} / {cell.steps_asked:,}"


# ---- a table ------------------------------------------------------------------------------------------------------


def markdown(header: list[str], rows: Iterator[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
