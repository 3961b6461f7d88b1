"""Whether two commits compute the same meta-losses.

    python experiments/compare_losses.py record after.json --omniglot DIR --mini_imagenet DIR
    python experiments/compare_losses.py record before.json --repository OTHER_WORKTREE --omniglot DIR --mini_imagenet DIR
    python experiments/compare_losses.py compare before.json after.json

`record` runs ten experiments through `experiments/run.py fit` of the repository asked for, on one CPU thread, and keeps every
step's meta-loss. It uses nothing of mamllit but its command line, so that it records commits from before it was written.
`compare` prints the largest relative difference of each experiment, and exits with 1 where one is above `tolerance`.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[1]
TIGHT_STEPS = 3  # of a training on images
ROUNDING = 1e-5
CHAOS = 0.3


class Experiment(NamedTuple):
    """A cell below `experiments/`, whether its step is compiled, how many steps at most, and which images it needs."""

    cell: str
    compile: bool = False
    at_most: int | None = None
    images: str | None = None

    @property
    def name(self) -> str:
        return self.cell + (" compiled" if self.compile else "")


# a compiled step is what runs of 2,000 steps and more take by default
EXPERIMENTS = [
    Experiment("maml/sine_10shot"),
    Experiment("maml/sine_10shot", compile=True),
    Experiment("maml/sine_10shot_first_order"),
    Experiment("meta_sgd/sine_10shot"),
    Experiment("mt_net/sine_10shot"),
    Experiment("bmaml/sine_10shot"),
    Experiment("maml/omniglot_5way_1shot", images="omniglot"),
    Experiment("maml/omniglot_5way_1shot", compile=True, images="omniglot"),
    Experiment("maml/omniglot_5way_1shot_mlp", images="omniglot"),
    Experiment("maml/omniglot_20way_1shot", images="omniglot"),
    Experiment("anil/omniglot_5way_1shot", images="omniglot"),
    Experiment("maml/mini_imagenet_5way_1shot", at_most=10, images="mini_imagenet"),  # seconds a step
]


def tolerance(name: str, step: int) -> float:
    """The relative difference allowed at `step` (from 0) of an experiment.

    float32 rounds at 6e-8, and on sine a meta-loss keeps that for 50 steps: the plain and the compiled step were never further
    apart than 2e-7. On images the norm and large inner steps multiply a difference by some hundred per update, and Adam, which
    divides a gradient by its size, moves a parameter whose gradient is rounding noise either way. Omniglot 5-way 1-shot at one
    commit, PyTorch's convolution beside mamllit's: 0, 0, 8e-8, 2e-5, 8e-3, and 1 to 7% from then on. So the first three losses
    must agree, which hang on the gradients of the first two. After that only a training that fares otherwise is told.
    """
    return ROUNDING if "sine" in name or step < TIGHT_STEPS else CHAOS


def losses_of(experiment: Experiment, repository: Path, steps: int, images: dict[str, Path]) -> list[float]:
    """The meta-loss of each step of a fresh training.

    Raises:
        RuntimeError: where the training fails, with the end of its output, or logs another number of steps.
    """
    steps = min(steps, experiment.at_most or steps)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "experiments/run.py",
            "fit",
            f"--config=experiments/{experiment.cell}.yaml",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={steps + 1}",
            "--trainer.enable_progress_bar=false",
            "--model.log_every=1",
            f"--model.compile={str(experiment.compile).lower()}",
            "--test_after_fit=false",
            "--wandb=disabled",
            "--threads=1",
        ]
        if experiment.images is not None:
            command.append(f"--data.root={images[experiment.images].resolve()}")
        environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"{experiment.name} failed with exit code {done.returncode}:\n{(done.stderr or done.stdout)[-3000:]}"
            )
        logged = [read for file in Path(folder).rglob("metrics.csv") for read in read_losses(file)]
    if len(logged) != steps:
        raise RuntimeError(f"{experiment.name} logged {len(logged)} meta-losses in {steps} steps; it must log each")
    return logged


def read_losses(file: Path) -> list[float]:
    """The column `train/meta_loss` of a CSVLogger's file, in the order of the steps."""
    with file.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row.get("train/meta_loss")]
    return [float(row["train/meta_loss"]) for row in sorted(rows, key=lambda row: int(row["step"]))]


def record(out: Path, repository: Path, steps: int, images: dict[str, Path | None], only: Sequence[str] = ()) -> int:
    """Run the experiments whose images are there; what is in `out` already is kept. The exit code is 1 where one failed."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=repository, capture_output=True, text=True)
    found: dict[str, Any] = {"commit": commit.stdout.strip(), "losses": {}}
    if out.exists():
        found["losses"] = json.loads(out.read_text())["losses"]
    there = {name: path for name, path in images.items() if path is not None}
    failed = False
    for experiment in EXPERIMENTS:
        if experiment.name in found["losses"] or (only and not any(word in experiment.name for word in only)):
            continue
        if experiment.images is not None and experiment.images not in there:
            print(f"{experiment.name}: left out; give the folder of its images by --{experiment.images}", flush=True)
            continue
        start = time.monotonic()
        try:
            found["losses"][experiment.name] = values = losses_of(experiment, repository, steps, there)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            failed = True
            continue
        print(f"{experiment.name}: {len(values)} steps, {time.monotonic() - start:.0f} s, last {values[-1]:.6f}", flush=True)
        out.write_text(json.dumps(found, indent=1))
    return int(failed)


def differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """The relative difference of each step that both have; infinite where one of them is not a number."""
    pairs = zip(before, after, strict=False)
    relative = [abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs]
    return [value if math.isfinite(value) else math.inf for value in relative]


def compare(before: Path, after: Path) -> int:
    """Print a row per experiment; the exit code is 1 where the losses differ, or an experiment of `before` is missing."""
    first, second = (json.loads(file.read_text()) for file in (before, after))
    print(f"{first['commit']} -> {second['commit']}")
    same = True
    for name, losses in first["losses"].items():
        if name not in second["losses"]:
            print(f"{name}: not in {after}")
            same = False
            continue
        found = differences(losses, second["losses"][name])
        worst = [step for step, value in enumerate(found) if value > tolerance(name, step)]
        same = same and not worst
        early, late = max(found[:TIGHT_STEPS]), max(found[TIGHT_STEPS:], default=0.0)
        verdict = f"DIFFERS from step {worst[0]} on" if worst else "same"
        print(f"{name}: {verdict}; steps 1 to {TIGHT_STEPS} {early:.1e}, later {late:.1e} ({len(found)} steps)")
    return int(not same)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the experiments and keep their losses")
    recording.add_argument("out", type=Path, help="JSON file to write; experiments that it holds are not run again")
    recording.add_argument("--repository", type=Path, default=REPOSITORY, help="the checkout to run (this one)")
    recording.add_argument("--steps", type=int, default=50, help="meta-updates per experiment (50; mini-ImageNet 10 at most)")
    recording.add_argument("--omniglot", type=Path, default=None, help="folder of the Omniglot images")
    recording.add_argument("--mini_imagenet", type=Path, default=None, help="folder of the mini-ImageNet images")
    recording.add_argument("--only", nargs="+", default=[], metavar="WORD", help="experiments whose names contain one of these")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    asked = parser.parse_args(arguments)
    if asked.command == "compare":
        return compare(asked.before, asked.after)
    if asked.steps < 1:
        parser.error(f"--steps is {asked.steps}; it must be >= 1")
    images = {"omniglot": asked.omniglot, "mini_imagenet": asked.mini_imagenet}
    return record(asked.out, asked.repository.resolve(), asked.steps, images, asked.only)


if __name__ == "__main__":
    sys.exit(main())
