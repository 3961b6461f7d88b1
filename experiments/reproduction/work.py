"""Training and evaluating a cell by mamllit's own command line, such that a stopped run goes on where it was.

All state is on the disk: a training's is its `last.ckpt`, an evaluation is finished when its `evaluated.json` is written and
still fits what would be evaluated. So there is nothing to repair after a kill: the next run looks and does what is missing.
"""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mamllit.cli import run_directory
from mamllit.runs import durable
from reproduction.cells import Cell

RECORD = "evaluated.json"


class Failed(Exception):
    """A command of mamllit ended badly; the text says which and how."""


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Args:
        out: folder of the evaluations and the tables.
        steps: meta-updates to train for; None for the cell's own number.
        roots: table -> folder of its data, instead of the YAML's.
        runs: folder of the trainings, instead of the YAMLs' `runs`.
        more: arguments for every call of mamllit.
    """

    out: Path
    steps: int | None = None
    roots: Mapping[str, str] = field(default_factory=dict)
    runs: Path | None = None
    more: Sequence[str] = ()

    def arguments(self, cell: Cell) -> list[str]:
        root = self.roots.get(cell.table)
        return [*(["--data.root", root] if root is not None else []), *self.more]

    def run_root(self, cell: Cell) -> Path:
        return cell.run_root if self.runs is None else self.runs / cell.name


def mamllit(*words: object) -> None:
    """Run `mamllit WORDS...` with this Python. Raises `Failed` with the command where it does not end well."""
    command = [str(word) for word in words]
    print(f"\n$ mamllit {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "mamllit.cli", *command]).returncode
    if code:
        raise Failed(f"`mamllit {shlex.join(command)}` ended with code {code}")


def newest_run(root: Path, seed: int) -> Path:
    """The run directory that mamllit takes for `--ckpt_path last`: the newest that has a checkpoint."""
    return run_directory.newest(root, f"seed_{seed}") or root / f"seed_{seed}"


def steps_of(checkpoint: Path) -> int:
    """Meta-updates that a Lightning checkpoint has behind it; 0 where there is none."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"] if checkpoint.exists() else 0


def train(cell: Cell, seed: int, options: Options, test: bool = False) -> Path:
    """The run directory of a training of the length asked for, or of a longer one; begins or goes on where it must.

    With `test` the same process tests the last weights, too.

    Raises:
        Failed: when mamllit fails, or stops before the last step; for a cell that trains nothing.

    What it begins with is trained first, with seed 0.
    """
    if cell.max_steps == 0:
        raise Failed(
            f"its max_steps is 0: nothing is trained; `mamllit fit -c {cell.path}` tests it (see the head of the file)"
        )
    root, steps = options.run_root(cell), options.steps or cell.max_steps
    done = steps_of(newest_run(root, seed) / "checkpoints" / "last.ckpt")
    if done < steps:
        words: list[object] = ["fit", "-c", cell.path, "--seed_everything", seed]
        words += [] if test else ["--test_after_fit", "false"]
        words += ["--trainer.max_steps", steps] if steps != cell.max_steps else []
        words += ["--trainer.val_check_interval", steps] if steps < cell.val_check_interval else []
        words += ["--trainer.default_root_dir", root] if options.runs is not None else []
        words += ["--ckpt_path", "last"] if done else []
        if cell.start is not None:
            words += ["--init_from", train(cell.start, 0, shortened(options, cell.start))]
        mamllit(*words, *options.arguments(cell))
    run = newest_run(root, seed)
    if (done := steps_of(run / "checkpoints" / "last.ckpt")) < steps:
        raise Failed(f"the training in {run} stopped after {done} of {steps} steps; run the same command again to go on")
    return run


def shortened(options: Options, cell: Cell) -> Options:
    """The options of another training, which is no longer than `cell`'s own."""
    return options if options.steps is None else replace(options, steps=min(options.steps, cell.max_steps))


def checkpoints(run: Path) -> dict[str, Path]:
    """What there is to evaluate: "last" (the paper's choice) and "best" on meta-val; one entry where they are the same step."""
    last, best = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    if not best.exists():
        return {"last": last}
    return {"last = best": last} if steps_of(last) == steps_of(best) else {"last": last, "best": best}


def evaluate(
    cell: Cell, seed: int, rule: str, checkpoint: str | Path, file: Path, training: Mapping[str, Any], options: Options
) -> bool:
    """Test a checkpoint with `mamllit test`, unless that was done; returns whether it had to be.

    Args:
        rule: how the checkpoint was chosen: "last", "best" or "last = best"; "..., pretrained" for one that comes with mamllit.
        checkpoint: what `--ckpt_path` takes.
        file: the checkpoint's file, by whose content an evaluation is known again.
        training: seconds, commit and steps of the training, for the table.
    """
    parent = options.out / "evaluations" / cell.name / f"seed_{seed}"
    folder = parent / re.sub(r"\W+", "_", rule)
    record = {
        "rule": rule,
        "seed": seed,
        "training": dict(training),
        "checkpoint": hashlib.sha256(file.read_bytes()).hexdigest(),
        "configuration": hashlib.sha256(cell.path.read_bytes()).hexdigest(),
        "arguments": list(options.arguments(cell)),
    }
    path = folder / RECORD
    if path.exists() and json.loads(path.read_text()) == record:
        return False
    outdated = {"last": ["last_best"], "best": ["last_best"], "last = best": ["last", "best"]}.get(rule, [])
    for name in [folder.name, *outdated]:
        shutil.rmtree(parent / name, ignore_errors=True)
    mamllit(
        "test", "-c", cell.path, "--seed_everything", seed, "--trainer.default_root_dir", parent, "--run_name", folder.name,
        "--ckpt_path", checkpoint, "--wandb", "disabled", *options.arguments(cell),
    )  # fmt: skip
    durable.write(path, json.dumps(record, indent=2))
    return True


def of_run(run: Path, cell: Cell) -> dict[str, Any]:
    """What the table says of a training, from its result.json."""
    result = run / "result.json"
    fit = json.loads(result.read_text()).get("fit", {}) if result.exists() else {}
    return {"steps_asked": cell.max_steps, "seconds": fit.get("seconds"), "commit": fit.get("commit")}
