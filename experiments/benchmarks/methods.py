"""What a meta-training step of each method costs beside MAML's: python experiments/benchmarks/methods.py --rows sine

The methods are those of experiments/<method>/, with the settings that stand there; the shape of the meta-batch is MAML's for
all. Each is timed in turns with MAML, in processes of their own. Writes methods.md and methods.csv.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from suite.costs import FILES, Cost, cells, markdown, measure, write_csv
from suite.problems import ROWS, few
from suite.report import facts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(FILES), default=list(FILES), help="shapes (all)")
    parser.add_argument("--cells", nargs="+", default=[], metavar="PATTERN", help="only these methods, e.g. 'mt_net/*'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn, at least one step (0.5)")
    parser.add_argument("--quick", action="store_true", help="few tasks: tries the script out, the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks") / date.today().isoformat())
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: cells(name, asked.cells) for name in asked.rows}
    about = facts()
    head = "\n".join(f"- {key}: {value}" for key, value in about.items())
    costs: list[Cost] = []
    for name, paths in chosen.items():
        print(f"{name}, {asked.device}, threads: {asked.threads}", flush=True)
        row = few(ROWS[name]) if asked.quick else ROWS[name]
        costs += measure(name, row, paths, asked.threads, asked.device, asked.rounds, asked.seconds, print)
        text = f"# Methods beside MAML\n\n{head}\n- threads: {asked.threads}\n- device: {asked.device}\n\n{markdown(costs)}"
        (asked.out / "methods.md").write_text(text, encoding="utf-8")
        write_csv(costs, asked.out / "methods.csv")
    (asked.out / "facts.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    print((asked.out / "methods.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
