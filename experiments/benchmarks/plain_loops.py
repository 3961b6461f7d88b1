"""MANN, memory module, neural statistician, meta-learner LSTM, timed: python experiments/benchmarks/plain_loops.py

A training step of each beside a loop in plain PyTorch with the same parameters (`suite/plain_loops.py`), in turns in one
process: sizes, optimiser, clipping and compilation are those of the YAML, images are random. A test compares losses and
gradients of the two. Seconds are of the clock and of the CPU. Writes plain_loops.csv and facts.json.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from suite.costs import EXPERIMENTS
from suite.peers.cell import method_of
from suite.plain_loops import PAIRS, batch_of, plainly
from suite.report import duration, facts
from suite.turns import KINDS, RATIOS, alternate

from mamllit.kernels.malloc import keep_memory

COLUMNS = ["system", "cell", "threads", "rounds", "steps", "first_seconds"] + [
    f"{who}_{what}" for who in ("mamllit", "plain") for what in KINDS
]  # fmt: skip
COLUMNS += RATIOS


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=list(PAIRS), default=list(PAIRS), help="which (all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn, at least one step (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks") / date.today().isoformat())
    return parser.parse_args(arguments)


def document_of(system: str) -> dict[str, Any]:
    """The YAML of a system's cell."""
    document: dict[str, Any] = yaml.safe_load((EXPERIMENTS / f"{PAIRS[system][0]}.yaml").read_text(encoding="utf-8"))
    return document


def measured(system: str, document: dict[str, Any], rounds: int, seconds: float) -> dict[str, Any]:
    """The record of a system with the settings of a YAML."""
    cell, own, loop = PAIRS[system]
    method, plain = method_of(document), method_of(plainly(document))
    plain.load_state_dict(method.state_dict())
    batch, pair = batch_of(document), [own(method, document), loop(plain, document)]
    turns = alternate(pair, batch, rounds, seconds)
    seconds_of = {f"{who}_{kind}": turns.median(i, kind) for i, who in enumerate(("mamllit", "plain")) for kind in KINDS}
    return {
        "system": system, "cell": cell, "threads": torch.get_num_threads(), "rounds": rounds, "steps": turns.steps,
        "first_seconds": max(turns.first[0] - turns.rounds[0][0][0], 0.0), **seconds_of, **turns.ratios(1),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    keep_memory()
    asked.out.mkdir(parents=True, exist_ok=True)
    records = []
    for system in asked.systems:
        records.append(record := measured(system, document_of(system), asked.rounds, asked.seconds))
        print(
            f"{system}: mamllit {duration(record['mamllit_clock'])} a step ({duration(record['mamllit_cpu'])} of the CPU), "
            f"the plain loop {record['clock_ratio_median']:.2f} times as long ({record['cpu_ratio_median']:.2f} of the CPU)",
            flush=True,
        )
        with (asked.out / "plain_loops.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(records)
    (asked.out / "facts.json").write_text(json.dumps(facts(), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
