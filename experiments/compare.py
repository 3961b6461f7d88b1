"""All methods on sine regression: python experiments/compare.py [--steps 10000] [--seeds 0 1 2]

Every cell experiments/<method>/sine_*.yaml is trained with every seed, the first seed of all before the second, and tested
after 10 gradient steps or its own number, whichever is more. Table, figure of all learning curves, and the orders that must
come out (do they hold?) are written anew after every run. Stopped, it goes on where it was when it is run again. Arguments
after `--` go to every call of mamllit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.cells import find_cells
from reproduction.comparison import collect, finish
from reproduction.comparison_figure import draw
from reproduction.comparison_table import markdown, write_csv
from reproduction.orders import SINE, judge
from reproduction.orders import markdown as list_of
from reproduction.work import Failed, Options

EXPERIMENTS = Path(__file__).parent


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    words, more = list(arguments), []
    if "--" in words:
        words, more = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=[], metavar="PATTERN", help="only these, e.g. 'maml/*'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds to train with (0 1 2)")
    parser.add_argument("--steps", type=int, help="iterations to train for at most (the cell's own number)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of table and figure (runs/compare)")
    parser.add_argument("--runs", type=Path, help="folder of the trainings (runs, as in the YAMLs)")
    parser.add_argument("--only_report", action="store_true", help="train nothing; table what is finished")
    parsed = parser.parse_args(words)
    if parsed.steps is not None and parsed.steps < 1:
        parser.error(f"--steps is {parsed.steps}; it must be >= 1")
    parsed.more = more
    return parsed


def main(arguments: Sequence[str], experiments: Path = EXPERIMENTS) -> int:
    """Do what is missing; the exit code is 1 where a run failed."""
    asked = parse(arguments)
    try:
        cells = find_cells(experiments, "sine", asked.cells)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options = Options(asked.out, asked.steps, runs=asked.runs, more=asked.more)
    problems: list[str] = []

    def report() -> str:
        rows = collect(cells, asked.seeds, options)
        verdicts = [judge(order, {row.cell.name: row for row in rows if row.runs}) for order in SINE]
        lines = ["# Sine regression: all methods", "", markdown(rows), "Orders that must come out:", "", list_of(verdicts), ""]
        lines += ["Not in the table:", "", *(f"- {problem}" for problem in problems), ""] if problems else []
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "sine.md").write_text(text := "\n".join(lines))
        write_csv(rows, asked.out / "sine.csv")
        if any(row.runs for row in rows):
            draw(rows, "Sine regression, meta-test error over the gradient steps").savefig(asked.out / "sine.png", dpi=110)
        return text

    for seed in asked.seeds if not asked.only_report else []:
        for cell in cells:
            try:
                finish(cell, seed, options)
            except Failed as error:
                problems.append(f"{cell.name}, seed {seed}: {error}")
            report()
    print(report())
    print(f"written: {asked.out}/sine.md, .csv, .png")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
