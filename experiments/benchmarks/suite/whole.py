"""Whole runs, `mamllit fit` beside bare loops of the peers, alternating.

mamllit runs as a user runs it: a process of its own, compiling from a cold cache, Trainer, validation, CSV and offline W&B. The
peers get the better of each doubt: no Trainer, no logging, no validation; start-up and compilation not counted; the sine
episodes drawn by the same code in the same blocks, and for images one batch over and over; and their time for the whole run
is scaled up from fewer iterations.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from suite.driver import ROOT, Process, Skipped
from suite.problems import ROWS, Problem, quick

SINE_YAML = ROOT.parent / "maml" / "sine_10shot.yaml"
LOGGERS = [
    {"class_path": "WandbLogger", "init_args": {"project": "mamllit"}},
    {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}},
]
PEER_SECONDS = 20.0  # that a peer's loop lasts about


@dataclass(frozen=True)
class WholeRun:
    """A paper's run: the row whose step it repeats, its iterations, and the size of its random data set.

    `lengths`: iterations of the two short runs it is extrapolated from; they differ by far more than start-up varies.
    """

    row: Problem
    iterations: int
    lengths: tuple[int, int] = (200, 600)
    classes: int = 0
    per_class: int = 0
    rotate: bool = False


RUNS = {
    "sine": WholeRun(ROWS["sine"], 70_000, (2_000, 12_000)),
    "omniglot": WholeRun(ROWS["omniglot-5w1s-1q"], 60_000, classes=1028, per_class=20, rotate=True),
    "mini": WholeRun(ROWS["mini-1s"], 60_000, classes=64, per_class=600),
}


@dataclass
class Whole:
    """Seconds of a whole run, round by round. `measured` iterations were run; fewer than `iterations` means scaled up."""

    name: str
    run: str
    iterations: int
    measured: int
    rounds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def small(run: WholeRun) -> WholeRun:
    """The same run, tiny, for trying the suite out."""
    return replace(run, row=quick(run.row), iterations=12, classes=min(run.classes, 8), per_class=min(run.per_class, 6))


def configuration(run: WholeRun, iterations: int, device: str) -> dict[str, Any]:
    """The `mamllit fit` of an image run on random pictures, otherwise like the experiments' YAMLs."""
    row = run.row
    backbone = {
        "in_channels": row.channels, "filters": row.filters, "out_features": row.ways, "image_size": row.side,
        "downsample": row.downsample, "implementation": "fast",
    }  # fmt: skip
    method = {
        "backbone": {"class_path": "mamllit.backbones.Conv4", "init_args": backbone},
        "objective": "mamllit.objectives.Classification", "inner_lr": row.inner_lr, "inner_steps": row.inner_steps,
        "reduction": "sum_over_shots", "frozen": [],
    }  # fmt: skip
    data = {
        "ways": row.ways, "shots": row.shots, "queries": row.queries, "meta_batch_size": row.tasks, "rotate": run.rotate,
        "channels": row.channels, "side": row.side, "classes": run.classes, "per_class": run.per_class,
    }  # fmt: skip
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "gpu" if device == "cuda" else device, "devices": 1, "max_steps": iterations,
            "val_check_interval": 1000, "logger": LOGGERS,
        },
        "model": {"class_path": "mamllit.systems.MetaLearner", "init_args": {
            "method": {"class_path": "mamllit.methods.MAML", "init_args": method},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "fused": True}},
        }},
        "data": {"class_path": "suite.random_images.RandomImages", "init_args": data},
        "checkpoint_best": {"monitor": "val/accuracy", "mode": "max"},
    }  # fmt: skip


class GpuShare:
    """Samples nvidia-smi's utilisation while it is entered: the share of time in which a kernel ran, in percent."""

    def __enter__(self) -> "GpuShare":
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        if shutil.which("nvidia-smi"):
            self._thread.start()
        return self

    def _sample(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not self._stop.wait(0.5):
            answer = subprocess.run(command, capture_output=True, text=True)
            self.samples += [float(line) for line in answer.stdout.split() if line.isdigit()]

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def busy(self) -> float:
        """Median of the second half, in which nothing is compiled any more; not a number without a GPU."""
        return statistics.median(self.samples[len(self.samples) // 2 :]) if self.samples else float("nan")


def fit(run: WholeRun, iterations: int, threads: int, device: str, compiled: str = "auto") -> tuple[float, float]:
    """Seconds of one `mamllit fit` process from start to end, and the GPU's busy share in percent."""
    with tempfile.TemporaryDirectory() as folder, GpuShare() as share:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache", "WANDB_SILENT": "true",
            "PYTHONPATH": path,
        }  # fmt: skip
        config = SINE_YAML
        if run.row.channels > 0:
            config = Path(folder) / "run.yaml"
            config.write_text(json.dumps(configuration(run, iterations, device)), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "mamllit.cli", "fit", "-c", str(config), "--test_after_fit", "false"]
        command += ["--threads", str(threads), "--model.compile", compiled]
        command += ["--trainer.max_steps", str(iterations), "--trainer.default_root_dir", folder]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(f"mamllit fit failed with code {done.returncode}: {done.stderr[-800:]}")
    return seconds, share.busy


def extrapolated(
    run: WholeRun, lengths: tuple[int, int], threads: int, device: str, compiled: str = "true"
) -> tuple[float, float]:
    """Seconds of the whole run from two short ones: the longer, plus the missing iterations at the rate between the two.

    Validation is in it only as far as the longer run gets; short runs are compiled like the whole one.

    Raises:
        ValueError: where the longer run was not the slower one, so that there is no rate.
    """
    short, long = lengths
    first, _ = fit(run, short, threads, device, compiled)
    second, busy = fit(run, long, threads, device, compiled)
    if second <= first:
        raise ValueError(
            f"{long:,} iterations took {second:.1f} s and {short:,} took {first:.1f} s: start-up hides the rate; "
            f"give longer runs, e.g. --lengths {10 * short} {10 * long}"
        )
    return second + max(run.iterations - long, 0) * (second - first) / (long - short), busy


def peer_loop(name: str, run: WholeRun, threads: int, device: str) -> tuple[float, int]:
    """Seconds of the whole run in a bare loop of the peer, and the iterations that were run to tell."""
    process = Process(name, threads, device)
    try:
        process.build(run.row, "float32")
        process.ask("loop", steps=3)  # compiles, fills caches
        once = process.ask("loop", steps=2)["seconds"] / 2
        steps = min(max(int(PEER_SECONDS / once), 3), run.iterations)
        return process.ask("loop", steps=steps)["seconds"] / steps * run.iterations, steps
    finally:
        process.close()


def time_whole(
    key: str,
    run: WholeRun,
    peers: list[str],
    *,
    rounds: int,
    threads: int,
    device: str,
    lengths: tuple[int, int] | None,
    compiled: str = "true",
) -> list[Whole]:
    """Alternate `mamllit fit` (all of it, or `lengths` to extrapolate from) and the peers; who cannot take part is printed.

    `compiled`: "auto" for a whole run, which decides for itself; "true" for short ones, compiled like it.
    """
    ours = Whole("mamllit fit", key, run.iterations, lengths[1] if lengths else run.iterations)
    table = {name: Whole(name, key, run.iterations, 0) for name in peers}
    for number in range(rounds):
        if lengths:
            seconds, busy = extrapolated(run, lengths, threads, device, compiled)
        else:
            seconds, busy = fit(run, run.iterations, threads, device, compiled)
        ours.rounds.append(seconds)
        ours.busy.append(busy)
        for name in list(table):
            try:
                seconds, table[name].measured = peer_loop(name, run, threads, device)
            except Skipped as reason:
                print(f"  {reason}: skipped")
                del table[name]
                continue
            table[name].rounds.append(seconds)
        line = ", ".join(f"{w.name} {w.rounds[-1]:.1f} s" for w in (ours, *table.values()))
        print(f"  round {number + 1}: {line}", flush=True)
    return [ours, *table.values()]


def whole_markdown(entries: list[Whole], threads: int, device: str) -> str:
    """The table of the whole runs."""
    lines = [
        f"## Whole runs on {device}, threads: {threads}",
        "",
        "| run | competitor | iterations run | seconds | iterations/s | times mamllit's | GPU busy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in entries:
        base = next(e for e in entries if e.run == entry.run and e.name == "mamllit fit")
        ratios = [a / b for a, b in zip(entry.rounds, base.rounds, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        busy = f"{statistics.median(entry.busy):.0f}%" if entry.busy and entry.busy[0] == entry.busy[0] else "-"
        lines.append(
            f"| {entry.run} | {entry.name} | {entry.measured} of {entry.iterations} | {entry.median:.1f} | "
            f"{entry.iterations / entry.median:.1f} | {ratio} | {busy} |"
        )
    return "\n".join([*lines, ""])
