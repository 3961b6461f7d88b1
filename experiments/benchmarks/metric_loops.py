"""Prototypical networks, images per second of a training step: python experiments/benchmarks/metric_loops.py

mamllit's step (`MetaGradient`, as in a training of the YAML's length) beside the same network in a plain PyTorch loop, in
easyfsl's prototypical networks and in learn2learn's, in turns in one process; sizes and optimiser are those of the YAML, images
are random. Before anything is timed, losses and weights of plain PyTorch and learn2learn are compared with mamllit's, in
float64. A library that is not installed is left out with one line. Seconds are of the clock and of the CPU. Writes
metric_loops.csv and facts.json.
"""

import argparse
import copy
import csv
import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from suite.costs import EXPERIMENTS
from suite.metric_loops import ROWS, check, competitors
from suite.plain_loops import batch_of
from suite.report import facts
from suite.turns import RATIOS, alternate

from mamllit.kernels.malloc import keep_memory

COLUMNS = ["row", "cell", "competitor", "threads", "images", "rounds", "steps", "first_seconds", "clock", "cpu"]
COLUMNS += ["images_per_second", "error_float64", *RATIOS]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which (all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn, at least one step (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks") / date.today().isoformat())
    return parser.parse_args(arguments)


def document_of(row: str) -> dict[str, Any]:
    """The YAML of a row's cell, with what differs in its data."""
    cell, changes = ROWS[row]
    document: dict[str, Any] = copy.deepcopy(yaml.safe_load((EXPERIMENTS / f"{cell}.yaml").read_text(encoding="utf-8")))
    document["data"]["init_args"] |= changes
    return document


def measured(row: str, document: dict[str, Any], rounds: int, seconds: float) -> Iterator[dict[str, Any]]:
    """A record for each competitor of a row, mamllit's first."""
    errors = check(document)
    team, missing = competitors(document)
    for name in missing:
        print(f"{row}: {name} is not installed, and left out", flush=True)
    batch = batch_of(document)
    images = sum(part.y.numel() for part in batch)
    turns = alternate(list(team.values()), batch, rounds, seconds)
    for place, name in enumerate(team):
        clock = turns.median(place, "clock")
        yield {
            "row": row, "cell": ROWS[row][0], "competitor": name, "threads": torch.get_num_threads(), "images": images,
            "rounds": rounds, "steps": turns.steps, "first_seconds": max(turns.first[place] - clock, 0.0), "clock": clock,
            "cpu": turns.median(place, "cpu"), "images_per_second": images / clock, "error_float64": errors.get(name, ""),
            **turns.ratios(place),
        }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    keep_memory()
    asked.out.mkdir(parents=True, exist_ok=True)
    records = []
    for row in asked.rows:
        for record in measured(row, document_of(row), asked.rounds, asked.seconds):
            records.append(record)
            print(
                f"{row}: {record['competitor']} {record['images_per_second']:.0f} images a second, a step "
                f"{record['clock_ratio_median']:.2f} times as long as mamllit's ({record['cpu_ratio_median']:.2f} of the CPU)",
                flush=True,
            )
        with (asked.out / "metric_loops.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(records)
    (asked.out / "facts.json").write_text(json.dumps(facts(), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
