"""MAML, LLAMA, PLATIPUS and Bayesian MAML on tasks that few points do not tell: python experiments/compare_uncertainty.py

Trains the cells experiments/<method>/sine_line_*.yaml (ambiguous: a sine or a line) and frequency_sine_*.yaml that have no
finished run yet, and writes for each family of tasks the mean squared error, negative log-likelihood and coverage of the 90%
interval, and whether the Bayesian methods are better calibrated than MAML; figures of sampled models go into the run
directories. Arguments after `--` go to every call of mamllit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.calibrated import NOISE, Judged, Trained, judge, markdown, title, verdicts
from reproduction.cells import Cell, find_cells
from reproduction.comparison import Compared, asked_steps, eval_steps, finish, was_tested
from reproduction.orders import markdown as list_of
from reproduction.work import Failed, Options, newest_run, steps_of
from uncertainty import figures, load

EXPERIMENTS = Path(__file__).parent
BASE, BETTER = "maml", ("platipus", "bmaml", "bmaml, likelihood")
LEGEND = """\
NLL of the query targets, and the share of them in the central 90% interval, under the mixture of a method's sampled models (for
MAML its one), each with Gaussian noise around it: the data's own, or the one that was best for the method on meta-val. Mean and
95% interval over the tasks, each averaged over the seeds first; shots and inner steps are those of the experiment's YAML. No
paper gives these numbers.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    words, more = list(arguments), []
    if "--" in words:
        words, more = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(NOISE), default=list(NOISE), help="families of tasks (both)")
    parser.add_argument("--cells", nargs="+", default=[], metavar="PATTERN", help="only these, e.g. 'maml/*' 'bmaml/*'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds to train with (0 1 2)")
    parser.add_argument("--steps", type=int, help="iterations to train for at most (the cell's own number)")
    parser.add_argument("--tasks", type=int, default=500, help="meta-test tasks to judge by (500)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the table (runs/compare)")
    parser.add_argument("--runs", type=Path, help="folder of the trainings (runs, as in the YAMLs)")
    parser.add_argument("--only_report", action="store_true", help="train nothing; table what is finished")
    parsed = parser.parse_args(words)
    for name in ("steps", "tasks"):
        if (value := getattr(parsed, name)) is not None and value < 1:
            parser.error(f"--{name} is {value}; it must be >= 1")
    parsed.more = more
    return parsed


def finished(cell: Cell, seeds: Sequence[int], options: Options) -> list[Trained]:
    """The runs of a cell that are long enough and tested; draws their sampled models."""
    found = []
    for seed in seeds:
        folder = newest_run(options.run_root(cell), seed)
        done = steps_of(folder / "checkpoints" / "last.ckpt")
        if done >= asked_steps(cell, options) and was_tested(folder, eval_steps(cell)):
            method, data, inner_steps = load(folder)
            figures(method, data, inner_steps, folder / "figures", title(folder))
            found.append(Trained(method, data, inner_steps, done))
    return found


def report(cells: Sequence[Cell], asked: argparse.Namespace, options: Options, problems: Sequence[str]) -> str:
    """The document, from what is finished."""
    lines, checks = ["# Uncertainty", "", LEGEND], []
    for table in asked.tables:
        rows: list[Judged] = []
        for cell in (cell for cell in cells if cell.table == table):
            if runs := finished(cell, asked.seeds, options):
                rows += judge(Compared(cell, []).name, runs, NOISE[table], asked.tasks)
        checks += verdicts(table, rows, BASE, BETTER)
        lines += [f"{table}:", "", markdown(rows), ""]
    lines += ["Orders that must come out:", "", list_of(checks), ""]
    lines += ["Not in the table:", "", *(f"- {problem}" for problem in problems), ""] if problems else []
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "uncertainty.md").write_text(text := "\n".join(lines))
    return text


def main(arguments: Sequence[str], experiments: Path = EXPERIMENTS) -> int:
    """Do what is missing; the exit code is 1 where a run failed."""
    asked = parse(arguments)
    try:
        cells = [cell for cell in find_cells(experiments, "all", asked.cells) if cell.table in asked.tables]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options, problems = Options(asked.out, asked.steps, runs=asked.runs, more=asked.more), []
    for seed in asked.seeds if not asked.only_report else []:
        for cell in cells:
            try:
                finish(cell, seed, options)
            except Failed as error:
                problems.append(f"{cell.name}, seed {seed}: {error}")
    print(report(cells, asked, options, problems))
    print(f"written: {asked.out}/uncertainty.md")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
