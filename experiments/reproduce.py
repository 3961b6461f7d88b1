"""The result tables, made anew: python experiments/reproduce.py {omniglot,mini_imagenet,sine,all}

A cell whose checkpoint comes with mamllit is evaluated from it; any other, or with --train every one, is trained first, by the
documented command. Everything is evaluated under both protocols and with both kinds of batch norm. Stopped, it goes on where it
was when it is run again. Arguments after `--` go to every call of mamllit, e.g. `-- --trainer.accelerator gpu`.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduction.cells import Cell, find_cells
from reproduction.figure import draw
from reproduction.table import Row, collect, markdown, write_csv
from reproduction.work import Failed, Options, checkpoints, evaluate, of_run, train

from mamllit import pretrained

EXPERIMENTS = Path(__file__).parent


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    words, more = list(arguments), []
    if "--" in words:
        words, more = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="omniglot, mini_imagenet, sine, or all")
    parser.add_argument("--recipe", action="store_true", help="the recipes, which depart from the papers on purpose")
    parser.add_argument("--cells", nargs="+", default=[], metavar="PATTERN", help="only these, e.g. '*_20way_1shot'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds to train with (0)")
    parser.add_argument("--steps", type=int, help="iterations to train for (the cell's own: the paper's number)")
    parser.add_argument("--train", action="store_true", help="train also the cells whose checkpoint comes with mamllit")
    parser.add_argument("--data", nargs="+", default=[], metavar="TABLE=FOLDER", help="e.g. omniglot=data/omniglot")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="evaluations and tables (runs/reproduce)")
    parser.add_argument("--runs", type=Path, help="folder of the trainings (runs, as in the YAMLs)")
    parsed = parser.parse_args(words)
    if parsed.steps is not None and parsed.steps < 1:
        parser.error(f"--steps is {parsed.steps}; it must be >= 1")
    if wrong := [entry for entry in parsed.data if "=" not in entry]:
        parser.error(f"--data has {wrong}; each entry must be TABLE=FOLDER, such as omniglot=data/omniglot")
    parsed.data, parsed.more = dict(entry.split("=", 1) for entry in parsed.data), more
    return parsed


def main(arguments: Sequence[str], experiments: Path = EXPERIMENTS) -> int:
    """Do what is missing and write the table after every step; the exit code is 1 where a cell is missing or failed."""
    asked = parse(arguments)
    try:
        cells = find_cells(experiments, asked.table, asked.cells, asked.recipe)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options = Options(asked.out, asked.steps, asked.data, asked.runs, asked.more)
    problems: list[str] = []
    ready: dict[tuple[str, str | None], str | None] = {}
    report = Report(asked.table + "_recipe" * asked.recipe, cells, options, problems)
    for cell in cells:
        source = (str(cell.document["data"]), options.roots.get(cell.table))
        if source not in ready:
            ready[source] = cell.data_problem(source[1])
        if (problem := ready[source]) is not None:
            problems.append(f"{cell.name}: {problem}")
            continue
        for job in [None] if cell.key in pretrained.names() and not asked.train else asked.seeds:
            try:
                from_repository(cell, options) if job is None else from_training(cell, job, options, report)
            except Failed as error:
                problems.append(f"{cell.name}: {error}")
            report.write()
    print(report.write())
    print(f"written: {report.stem}.md, .csv, .png")
    return 1 if problems else 0


def from_repository(cell: Cell, options: Options) -> None:
    """Evaluate the checkpoint that comes with mamllit."""
    file = pretrained.find(cell.key)
    result = pretrained.read(file)[0].result
    fit = result.get("fit") or {}
    training = {"steps_asked": cell.max_steps, "seconds": fit.get("seconds"), "commit": fit.get("commit")}
    evaluate(cell, result["seed"], f"{result['checkpoint']}, pretrained", cell.key, file, training, options)


def from_training(cell: Cell, seed: int, options: Options, report: "Report") -> None:
    """Train as far as is asked for, and evaluate the last checkpoint and the best one."""
    run = train(cell, seed, options)
    for rule, checkpoint in checkpoints(run).items():
        evaluate(cell, seed, rule, checkpoint, checkpoint, of_run(run, cell), options)
        report.write()


class Report:
    """Writes the table of all that is finished: STEM.md, STEM.csv and STEM.png."""

    def __init__(self, table: str, cells: Sequence[Cell], options: Options, problems: list[str]) -> None:
        self.cells, self.out, self.problems, self.roots = cells, options.out, problems, options.roots
        self.title, self.stem = f"Reproduction: {table}", options.out / table

    def write(self) -> str:
        rows = collect(self.cells, self.out)
        commands = {to_finish(row, self.roots) for row in rows} - {""}
        text = markdown(rows, self.title, self.problems, sorted(commands))
        self.out.mkdir(parents=True, exist_ok=True)
        self.stem.with_suffix(".md").write_text(text)
        write_csv(rows, self.stem.with_suffix(".csv"))
        if rows:
            draw(rows, self.title).savefig(self.stem.with_suffix(".png"), dpi=130)
        return text


def to_finish(row: Row, roots: Mapping[str, str]) -> str:
    """The command that trains a row's cell to the paper's length; "" where that is done, or said at its last checkpoint."""
    if row.steps_done >= row.steps_asked or row.checkpoint == "best":
        return ""
    data = "".join(f" {shlex.quote(f'{table}={root}')}" for table, root in roots.items())
    recipe = " --recipe" if row.cell.startswith("recipes/") else ""
    command = f"python experiments/reproduce.py all{recipe} --cells {row.cell} --seeds {row.seed} --train"
    return command + (f" --data{data}" if data else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
