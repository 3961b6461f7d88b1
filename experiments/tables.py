"""Write every table of README.md, experiments/ and docs/ from the data in experiments/results/, and a figure of them.

    python experiments/tables.py            write the tables
    python experiments/tables.py --check    change nothing; exit 1 if a table is not what the data say

A table stands in a Markdown file between the lines `<!-- table: NAME -->` and `<!-- end of table -->`; the names are those of
`TABLES`. The data are one JSON file per cell and seed, written by `mamllit results add RUN_DIR`, and one folder per benchmark
in experiments/results/speed/, with the `steps.csv` and `facts.json` of a run of experiments/benchmarks/run.py. What a paper
published is read from the cell's YAML file. A run that is shorter than its YAML asks for never stands among the finished ones.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tabled import data
from tabled.minutes import draw, minutes
from tabled.others import any_ways, methods, metric_loops, own_sets, plain_loops, speed, templates
from tabled.paper import table_one
from tabled.results import begun, finished, images, regression, returns, streams

DOCUMENTS = ("README.md", "experiments/**/*.md", "docs/**/*.md")
BLOCK = re.compile(r"(^<!-- table: (\w+) -->\n).*?(^<!-- end of table -->$)", re.MULTILINE | re.DOTALL)
TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "finished": finished,
    "table_one": table_one,
    "begun": begun,
    "images": images,
    "regression": regression,
    "streams": streams,
    "returns": returns,
    "speed": speed,
    "plain_loops": plain_loops,
    "metric_loops": metric_loops,
    "own_sets": own_sets,
    "any_ways": any_ways,
    "templates": templates,
    "minutes": minutes,
}


def documents() -> list[Path]:
    """The Markdown files with a table."""
    found = {path for pattern in DOCUMENTS for path in data.ROOT.glob(pattern) if "_build" not in path.parts}
    return sorted(path for path in found if BLOCK.search(path.read_text(encoding="utf-8")))


def rewritten(path: Path) -> str:
    """The text of a file with its tables written anew.

    Raises:
        ValueError: for a table that is not in `TABLES`.
    """
    text = path.read_text(encoding="utf-8")
    if unknown := sorted({name for _, name, _ in BLOCK.findall(text)} - set(TABLES)):
        raise ValueError(
            f"{path.relative_to(data.ROOT)} asks for the table {unknown[0]!r}; the tables are: {', '.join(TABLES)}"
        )
    depth = len(path.relative_to(data.ROOT).parts) - 1

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
        print(f"{'differs from the data' if check else 'written'}: {path.relative_to(data.ROOT)}")
    if not check:
        draw()
    if check and stale:
        sys.exit("run `python experiments/tables.py`")


if __name__ == "__main__":
    main()
