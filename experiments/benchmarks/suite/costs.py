"""What a step of each method costs beside MAML's, on the same shape; the methods are the experiments' YAMLs."""

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from suite.problems import Problem
from suite.report import duration
from suite.steps import Measured, Team, ratios, time_rounds

EXPERIMENTS = Path(__file__).parents[2]
FILES = {  # row -> its cells
    "sine": "sine_10shot*.yaml",
    "omniglot-5w1s-1q": "omniglot_5way_1shot*.yaml",
    "mini-1s": "mini_imagenet_5way_1shot*.yaml",
}
BASE = {
    "sine": "maml/sine_10shot",
    "omniglot-5w1s-1q": "maml/omniglot_5way_1shot",
    "mini-1s": "maml/mini_imagenet_5way_1shot",
}


def name_of(path: Path) -> str:
    """ "maml/sine_10shot" for experiments/maml/sine_10shot.yaml."""
    return str(path.relative_to(EXPERIMENTS).with_suffix(""))


def cells(row: str, patterns: Sequence[str] = ()) -> list[Path]:
    """The YAMLs that can run with the episodes of a row, in order; those that a shell pattern matches where there are any.

    Others are left out: what is not meta-trained or has no inner steps, networks without convolutions, and an oracle, whose
    inputs are more than x.

    Raises:
        ValueError: for a row that has no cells, or a pattern that matches none.
    """
    if row not in FILES:
        raise ValueError(f"there are no methods for the row {row!r}; there are {', '.join(FILES)}")
    fitting = []
    for path in sorted(EXPERIMENTS.glob(f"*/{FILES[row]}")):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        method = (document.get("model") or {}).get("init_args", {}).get("method")
        if method is None or document["trainer"]["max_steps"] == 0:  # a sweep; a pre-training; a method that is only tested
            continue
        arguments = method["init_args"]
        if not arguments.get("inner_steps"):
            continue
        images = arguments["backbone"]["class_path"].endswith("Conv4")
        if images == (row != "sine") and not document["data"]["init_args"].get("reveal_task"):
            fitting.append(path)
    for pattern in patterns:
        if not any(fnmatchcase(name_of(path), pattern) for path in fitting):
            raise ValueError(f"no cell of {row!r} matches {pattern!r}; there are {', '.join(map(name_of, fitting))}")
    return [path for path in fitting if not patterns or any(fnmatchcase(name_of(path), pattern) for pattern in patterns)]


@dataclass(frozen=True)
class Cost:
    """One method: seconds of a step in each round, over MAML's in the same round, and peak memory beyond what it holds."""

    name: str
    row: Problem
    inner_steps: int
    rounds: Sequence[float]
    ratios: Sequence[float]
    peak_bytes: float
    compile_seconds: float


Say = Callable[[str], None]


def measure(
    row_name: str, row: Problem, paths: Sequence[Path], threads: int, device: str, rounds: int, budget: float, say: Say
) -> list[Cost]:
    """MAML first; then every method in turn beside MAML, round by round, a process each."""
    base_path = EXPERIMENTS / f"{BASE[row_name]}.yaml"
    base_team = Team(threads, device)
    costs: list[Cost] = []
    try:
        base = _warm(base_path, row, base_team)
        base_bytes = _memory(base, base_team)
        for path in [base_path, *(path for path in paths if path != base_path)]:
            own_team = base_team if path == base_path else Team(threads, device)
            try:
                own = base if path == base_path else _warm(path, row, own_team)
                base.rounds.clear()
                for _ in range(rounds):
                    time_rounds([base], base_team, 1, budget)
                    if own is not base:
                        time_rounds([own], own_team, 1, budget)
                peak = base_bytes if own is base else _memory(own, own_team)
                steps = yaml.safe_load(path.read_text())["model"]["init_args"]["method"]["init_args"]["inner_steps"]
                costs.append(Cost(name_of(path), row, steps, tuple(own.rounds), ratios(own, base), peak, own.compile_seconds))
                say(f"  {name_of(path)}: {duration(own.median)}")
            except RuntimeError as error:  # one method that fails costs its own row
                say(f"  {name_of(path)}: {error}")
            finally:
                if own_team is not base_team:
                    own_team.close()
    finally:
        base_team.close()
    return costs


def _warm(path: Path, row: Problem, team: Team) -> Measured:
    entry = Measured(str(path.resolve()), row, team.threads, team.device)
    process = team.process(entry.name)
    process.build(row, "float32")
    first = process.ask("time", steps=1)["seconds"]
    entry.once = process.ask("time", steps=1)["seconds"]
    entry.compile_seconds = max(first - entry.once, 0.0)
    return entry


def _memory(entry: Measured, team: Team) -> float:
    return float(team.process(entry.name).ask("memory", steps=2)["bytes"])


def markdown(costs: Sequence[Cost]) -> str:
    """A table per row; MAML's line is the first of each."""
    lines = []
    for row in dict.fromkeys(cost.row.name for cost in costs):
        here = [cost for cost in costs if cost.row.name == row]
        shape = here[0].row
        lines += [f"{row}: {shape.tasks} tasks, {shape.support_size} support and {shape.query_size} query examples each", ""]
        heads = ["experiment", "inner steps", "step", "over MAML's (least to most)", "peak memory", "over MAML's", "first step"]
        lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        lines += [_line(cost, here[0].peak_bytes) for cost in here]
        lines.append("")
    return "\n".join(lines)


def _line(cost: Cost, base_bytes: float) -> str:
    spread = f"{statistics.median(cost.ratios):.2f} ({min(cost.ratios):.2f} to {max(cost.ratios):.2f})"
    memory = f"{cost.peak_bytes / base_bytes:.2f}" if base_bytes else "-"
    cells = [cost.name, str(cost.inner_steps), duration(statistics.median(cost.rounds)), spread]
    cells += [f"{cost.peak_bytes / 2**20:.1f} MiB", memory, f"{cost.compile_seconds:.0f} s"]
    return f"| {' | '.join(cells)} |"


def write_csv(costs: Sequence[Cost], path: Path) -> None:
    """Everything, unrounded; a method's rounds in one cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "experiment", "inner_steps", "seconds", "over_maml", "peak_bytes", "first_step_seconds"])
        for cost in costs:
            pair = (" ".join(map(str, values)) for values in (cost.rounds, cost.ratios))
            writer.writerow([cost.row.name, cost.name, cost.inner_steps, *pair, cost.peak_bytes, cost.compile_seconds])
