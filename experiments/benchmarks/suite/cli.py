"""The command line of the suite; see `run.py`."""

import argparse
import json
import os
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from suite import share
from suite.driver import Mismatch
from suite.figures import write_figures
from suite.peers import FILES
from suite.problems import ROWS, STEP_ROWS, Problem, quick
from suite.report import facts, markdown, records, write_csv
from suite.steps import REFERENCE, Team, measure_busy, measure_memory, ready, time_rounds
from suite.whole import RUNS, Whole, small, time_whole, whole_markdown

GROUPS = ("step", "tasks", "inner steps", "queries")
SCALING_PEERS = ["mamllit-eager", "learn2learn"]  # fifty unrolled inner steps take too long to compile
MATMUL = {"cpu": 2048, "cuda": 8192}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )  # fmt: skip
    made.add_argument(
        "--rows", nargs="+", default=["step"], help=f"of {', '.join(ROWS)}; or a group: {', '.join(GROUPS)}; or all"
    )
    made.add_argument(
        "--peers", nargs="+", help=f"competitors (default: all; scaling rows: {SCALING_PEERS}): {', '.join(FILES)}"
    )
    made.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count() or 1], help="each number in turn")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--rounds", type=int, default=5, help="alternating rounds")
    made.add_argument("--no-memory", action="store_true", help="leave out peak memory (a process per cell)")
    made.add_argument("--quick", action="store_true", help="tiny shapes: tries the suite out, the numbers mean nothing")
    made.add_argument("--whole", nargs="*", choices=list(RUNS), help="whole runs of `mamllit fit` instead of steps")
    made.add_argument("--full", action="store_true", help="every iteration of a whole run (else extrapolated from --lengths)")
    made.add_argument(
        "--lengths", nargs=2, type=int, help="iterations of the two runs to extrapolate from (default: the run's own)"
    )
    made.add_argument("--share", action="store_true", help="which share of a bare loop's speed `mamllit fit` has on sine")
    made.add_argument("--block", type=int, default=200, help="steps in each round of --share")
    made.add_argument("--out", type=Path, default=Path("runs/benchmarks") / date.today().isoformat())
    return made


def chosen(names: list[str]) -> dict[str, Problem]:
    """The rows that are named by key or group.

    Raises:
        ValueError: for a name that is neither.
    """
    rows: dict[str, Problem] = {}
    for name in names:
        found = {key: row for key, row in ROWS.items() if name in (key, row.group, "all")}
        if not found:
            raise ValueError(
                f"there is no row {name!r}; there are {', '.join(ROWS)}, and the groups {', '.join(GROUPS)} and all"
            )
        rows |= found
    return rows


def time_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, one number of threads after the other; the files are written anew after each row."""
    table: list[dict[str, Any]] = []
    for threads in options.threads:
        team = Team(threads, options.device)
        try:
            matmul = team.process(REFERENCE).ask("matmul", side=256 if options.quick else MATMUL[options.device])["flops"]
            for key, row in chosen(options.rows).items():
                print(f"{key}, {options.device}, threads: {threads}", flush=True)
                names = options.peers or (list(FILES) if key in STEP_ROWS else SCALING_PEERS)
                entries = ready(quick(row) if options.quick else row, names, team, lambda text: print(text, flush=True))
                time_rounds(entries, team, options.rounds, budget=0.01 if options.quick else 0.5)
                for entry in entries:
                    measure_busy(entry, team)
                    if not options.no_memory:
                        measure_memory(entry, team)
                table += records(entries, matmul)
                write_csv(options.out / "steps.csv", table)
                (options.out / "steps.md").write_text(markdown(table, facts()), encoding="utf-8")
        finally:
            team.close()
    return table


def time_runs(options: argparse.Namespace) -> None:
    """The whole runs that were asked for, and their table."""
    texts: list[str] = []
    entries: list[dict[str, Any]] = []
    whole = options.full or options.quick
    for threads in options.threads:
        here: list[Whole] = []
        for key in options.whole or list(RUNS):
            print(f"whole run {key}, {options.device}, threads: {threads}", flush=True)
            run = small(RUNS[key]) if options.quick else RUNS[key]
            lengths = None if whole else tuple(options.lengths or run.lengths)
            here += time_whole(
                key, run, options.peers or ["learn2learn", "jax"],
                rounds=options.rounds, threads=threads, device=options.device, lengths=lengths,
                compiled="false" if options.quick else "auto" if whole else "true",
            )  # fmt: skip
        texts.append(whole_markdown(here, threads, options.device))
        entries += [{"threads": threads, "device": options.device, **asdict(entry)} for entry in here]
    about = "\n".join(f"- {key}: {value}" for key, value in facts().items())
    (options.out / "whole.md").write_text(f"# Whole runs\n\n{about}\n\n" + "\n".join(texts), encoding="utf-8")
    (options.out / "whole.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")


def time_share(options: argparse.Namespace) -> None:
    """A line for each number of threads."""
    compiled, lines = "false" if options.quick else "true", []
    for threads in options.threads:
        turns = share.measure(options.out, options.rounds, 2 if options.quick else options.block, compiled, threads)
        lines.append(f"threads: {threads}, {share.markdown(turns)}")
    about = "\n".join(f"- {key}: {value}" for key, value in facts().items())
    (options.out / "share.md").write_text(f"# Share of a bare loop's speed\n\n{about}\n\n" + "\n".join(lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this PyTorch finds no CUDA device; use --device cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "facts.json").write_text(json.dumps(facts(), indent=1), encoding="utf-8")
    if options.share:
        time_share(options)
        print((options.out / "share.md").read_text(encoding="utf-8"))
        return
    if options.whole is not None:
        time_runs(options)
        print((options.out / "whole.md").read_text(encoding="utf-8"))
        return
    try:
        table = time_steps(options)
    except Mismatch as error:
        raise SystemExit(f"refused: {error}") from error
    write_figures(options.out, table)
    print((options.out / "steps.md").read_text(encoding="utf-8"))
    print(f"all of it in {options.out}")
