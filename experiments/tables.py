"""Write every table of README.md, experiments/ and docs/ from the data in experiments/results/.

    python experiments/tables.py            write the tables
    python experiments/tables.py --check    change nothing; exit 1 if a table is not what the data say

A table stands in a Markdown file between the lines `<!-- table: NAME -->` and `<!-- end of table -->`; the names are those of
`TABLES`. The data are one JSON file per cell and seed, written by `mamllit results add RUN_DIR`, and one folder per benchmark
in experiments/results/speed/, with the `steps.csv` and `facts.json` of a run of experiments/benchmarks/run.py. What a paper
published is read from the cell's YAML file. A run that is shorter than its YAML asks for never stands among the finished ones.
"""

import argparse
import ast
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
DOCUMENTS = ("README.md", "experiments/**/*.md", "docs/**/*.md")
BLOCK = re.compile(r"(^<!-- table: (\w+) -->\n).*?(^<!-- end of table -->$)", re.MULTILINE | re.DOTALL)
COMPETITORS = {"learn2learn": "learn2learn", "autograd": "plain autograd", "torchopt": "TorchOpt", "higher": "higher"}


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
        return int(self.document["model"]["init_args"]["report_step"])

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
        seeds = {s: r for s, r in self.seeds.items() if r["steps_done"] >= self.steps_asked and not r["changed"]}
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


# ---- the tables -------------------------------------------------------------------------------------------------------


def markdown(header: list[str], rows: Iterator[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def finished() -> str:
    """Cells trained to their paper's length, with the paper's protocol and value."""

    def rows() -> Iterator[list[str]]:
        for cell in filter(None, (cell.finished for cell in cells())):
            if cell.streamed:
                continue
            if cell.first["metric"] == "return" and cell.steps_asked == 0:  # random weights; in `returns`
                continue
            metric, link = cell.first["metric"], f"[{cell.title}](experiments/{cell.name}.yaml)"
            for name, values in cell.published.items():
                if name not in cell.first["results"]:
                    continue
                ci95 = cell.published_ci95.get(name, {})
                steps = sorted(values)
                yield [
                    link + f", tested with K = {_shots(cell, name)}" * (metric != "accuracy"),
                    f"{cell.steps_asked:,}",
                    " / ".join(map(str, steps)),
                    " / ".join(measured(cell, name, step) for step in steps),
                    " / ".join(interval(metric, values[step], ci95.get(step)) for step in steps),
                    str(len(cell.seeds)),
                ]  # fmt: skip

    return markdown(["experiment", "iterations", "inner steps", "measured here", "published", "seeds"], rows())


def _shots(cell: Cell, name: str) -> int:
    return int(cell.first["results"][name]["shots"])


def begun() -> str:
    """Cells trained for less than their paper's length, or with other settings than its."""

    def rows() -> Iterator[list[str]]:
        for cell in cells():
            if cell.finished or cell.streamed or cell.first["metric"] == "return":  # a table of their own
                continue
            metric = cell.first["metric"]
            step = cell.report_step if _has(cell, cell.report_step) else _last(cell)
            names = list(cell.first["results"])
            yield [
                f"`{cell.name}`",
                f"**{length(cell)}**",
                str(step),
                *(measured(cell, name, step) for name in _pair(names, "paper")),
                *(measured(cell, name, step) for name in _pair(names, "standard")),
                interval(metric, cell.published.get("paper", {}).get(step), cell.published_ci95.get("paper", {}).get(step)),
                ", ".join(f"`{name}`" for name in cell.first["changed"] if name != "trainer.max_steps"),
            ]

    header = [
        "cell",
        "iterations done / asked",
        "inner steps",
        "paper",
        "paper, inductive",
        "standard",
        "standard, inductive",
        "published",
    ]
    return markdown(header, rows())


def _has(cell: Cell, step: int) -> bool:
    return all(step < len(e["mean"]) and e["mean"][step] is not None for e in cell.first["results"].values())


def _last(cell: Cell) -> int:
    return min(len(e["mean"]) for e in cell.first["results"].values()) - 1


def _pair(names: list[str], protocol: str) -> tuple[str, str]:
    """The set of a protocol, which may have a number of episodes of its own (`standard[400]`), and its inductive reading."""
    plain = next((name for name in names if re.fullmatch(rf"{protocol}(\[\d+\])?", name)), protocol)
    return plain, f"{plain}/inductive"


def images() -> str:
    """Finished cells of images, transductive and inductive, with both protocols."""

    def rows() -> Iterator[list[str]]:
        for cell in filter(None, (cell.finished for cell in cells())):
            if cell.first["metric"] != "accuracy" or cell.streamed:
                continue
            names = list(cell.first["results"])
            for protocol in ("paper", "standard"):
                plain, inductive = _pair(names, protocol)
                if plain not in names:
                    continue
                for step in dict.fromkeys((1, cell.report_step)):
                    values, ci95 = cell.published.get(plain, {}), cell.published_ci95.get(plain, {})
                    yield [
                        f"`{cell.name}`",
                        ", ".join(map(str, cell.seeds)),
                        episodes(cell.first["results"][plain], "accuracy"),
                        str(step),
                        measured(cell, plain, step),
                        measured(cell, inductive, step),
                        interval("accuracy", values.get(step), ci95.get(step)),
                        str(cell.first["commit"])[:7],
                    ]

    header = ["cell", "seed", "episodes", "inner steps", "transductive", "inductive", "published", "commit"]
    return markdown(header, rows())


def streams() -> str:
    """Methods with a memory: accuracy by presentation, and with a support that stays as it is."""
    shown = (0, 1, 2, 3, 4, 5, 9)

    def rows() -> Iterator[list[str]]:
        for cell in (cell for cell in cells() if cell.streamed):
            name = next(name for name, entry in cell.first["results"].items() if entry["protocol"].startswith("stream"))
            others = {n: entry for n, entry in cell.first["results"].items() if n != name}
            frozen = [f"{e['shots']}-shot {measured(cell, n, 0)} [{e['episodes']:,}]" for n, e in others.items()]
            streams = f"{cell.first['results'][name]['episodes']:,}"
            published = cell.published.get("stream", {})
            yield [f"`{cell.name}`", length(cell), streams, *(measured(cell, name, step) for step in shown), "; ".join(frozen)]
            yield ["published", "", "", *(interval("accuracy", published.get(step), None) for step in shown), ""]

    ordinals = [f"{step + 1}{ {0: 'st', 1: 'nd', 2: 'rd'}.get(step, 'th') }" for step in shown]
    return markdown(["cell", "iterations done / asked", "streams", *ordinals, "fixed support [episodes]"], rows())


def regression() -> str:
    """Finished cells of regression: mean and median error, by seed and by number of points."""

    def rows() -> Iterator[list[str]]:
        for cell in filter(None, (cell.finished for cell in cells())):
            for seed, record in cell.seeds.items():
                if record["metric"] != "mse":
                    continue
                for entry in record["results"].values():
                    steps = (1, 2, 5, 10)
                    median = [entry.get("median", [None] * 11)[step] for step in (1, 5, 10)]
                    yield [
                        f"`{cell.name}`",
                        str(seed),
                        str(entry["shots"]),
                        episodes(entry, "mse"),
                        *(interval("mse", entry["mean"][step], entry["ci95"][step]) for step in steps),
                        " / ".join(number("mse", value) for value in median) if None not in median else "",
                    ]

    header = ["cell", "seed", "K", "tasks", "1 step", "2 steps", "5 steps", "10 steps", "median 1 / 5 / 10"]
    return markdown(header, rows())


def speed() -> str:
    """One meta-training step: mamllit's time, and the time of the others over mamllit's, on each machine."""

    def rows() -> Iterator[list[str]]:
        for folder in sorted(path for path in (RESULTS / "speed").iterdir() if path.is_dir()):
            facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
            with (folder / "steps.csv").open(encoding="utf-8", newline="") as file:
                table = list(csv.DictReader(file))
            for row in dict.fromkeys(entry["row"] for entry in table):
                here = {e["competitor"]: e for e in table if e["row"] == row}
                base = here["mamllit"]
                yield [
                    f"{facts['processor']}, `{facts['commit'][:7]}`",
                    f"`{row}`",
                    base["threads"],
                    duration(float(base["seconds_median"])),
                    *(_ratio(here.get(name)) for name in COMPETITORS),
                ]

    header = ["machine, commit", "row", "threads", "mamllit", *(f"{name} / mamllit" for name in COMPETITORS.values())]
    return markdown(header, rows())


def _ratio(entry: dict[str, str] | None) -> str:
    if entry is None:
        return ""
    median, low, high = (float(entry[f"ratio_{key}"]) for key in ("median", "min", "max"))
    digits = 1 if median >= 10 else 2
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def methods() -> str:
    """Every method: what its file's docstring calls it, its experiments, its paper."""

    def rows() -> Iterator[list[str]]:
        folder = ROOT / "mamllit" / "methods"
        imported = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        stems = [node.module.rsplit(".", 1)[-1] for node in imported if isinstance(node, ast.ImportFrom) and node.module]
        for stem in (stem for stem in stems if stem not in ("base", "inner_loop_method")):
            source = (folder / f"{stem}.py").read_text(encoding="utf-8")
            docstring = ast.get_docstring(ast.parse(source)) or stem
            paper = re.search(r"\d{4}\.\d{5}", docstring)
            classes = re.findall(r"^class (\w+)", source, re.MULTILINE)
            used = re.compile(rf"class_path: mamllit\.methods\.({'|'.join(classes)})\n")
            files = [f for f in sorted((ROOT / "experiments").rglob("*.yaml")) if used.search(f.read_text(encoding="utf-8"))]
            yield [
                docstring.split("\n", 1)[0].rstrip("."),
                f"`mamllit/methods/{stem}.py`",
                str(len(files)),
                f"[{paper[0]}](https://arxiv.org/abs/{paper[0]})" if paper else "",
            ]

    return markdown(["method", "file", "experiments", "paper"], rows())


def returns() -> str:
    """Reinforcement learning: returns after each gradient step by the paper's protocol, beside the published ones."""

    def rows() -> Iterator[list[str]]:
        for cell in cells():
            if cell.first["metric"] != "return":
                continue
            for name, entry in cell.first["results"].items():
                if entry["protocol"] != "paper":
                    continue
                steps = range(len(entry["mean"]))
                values, ci95 = cell.published.get(name, {}), cell.published_ci95.get(name, {})
                title = f"[{cell.title}](experiments/{cell.name}.yaml)"
                yield [title, length(cell), f"{entry['episodes']} x {entry['queries']}",
                       " / ".join(measured(cell, name, step) for step in steps),
                       " / ".join(interval("return", values.get(step), ci95.get(step)) or "?" for step in steps) * bool(values),
                       str(len(cell.seeds))]  # fmt: skip

    header = ["experiment", "iterations", "tasks x trajectories", "measured after 0 / 1 / 2 ... steps", "published", "seeds"]
    return markdown(header, rows())


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "finished": finished,
    "begun": begun,
    "images": images,
    "regression": regression,
    "streams": streams,
    "returns": returns,
    "speed": speed,
}


# ---- files ------------------------------------------------------------------------------------------------------------


def documents() -> list[Path]:
    """The Markdown files with a table."""
    found = {path for pattern in DOCUMENTS for path in ROOT.glob(pattern) if "_build" not in path.parts}
    return sorted(path for path in found if BLOCK.search(path.read_text(encoding="utf-8")))


def rewritten(path: Path) -> str:
    """The text of a file with its tables written anew.

    Raises:
        ValueError: for a table that is not in `TABLES`.
    """
    text = path.read_text(encoding="utf-8")
    if unknown := sorted({name for _, name, _ in BLOCK.findall(text)} - set(TABLES)):
        raise ValueError(f"{path.relative_to(ROOT)} asks for the table {unknown[0]!r}; the tables are: {', '.join(TABLES)}")
    depth = len(path.relative_to(ROOT).parts) - 1

    def block(match: re.Match[str]) -> str:
        table = TABLES[match[2]]().replace("](experiments/", f"]({'../' * depth}experiments/")
        return f"{match[1]}\n{table}\n{match[3]}"

    return BLOCK.sub(block, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the tables of README.md, experiments/ and docs/ from experiments/results/."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is not what the data say")
    check = parser.parse_args().check
    stale = [path for path in documents() if rewritten(path) != path.read_text(encoding="utf-8")]
    for path in stale:
        if not check:
            path.write_text(rewritten(path), encoding="utf-8")
        print(f"{'differs from the data' if check else 'written'}: {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit("run `python experiments/tables.py`")


if __name__ == "__main__":
    main()
