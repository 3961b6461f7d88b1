"""What comes out: a CSV with everything, a Markdown table for people, and the facts about the machine."""

import csv
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from suite.driver import ROOT
from suite.floor import analytic_flops
from suite.steps import Measured, ratios

PACKAGES = ("torch", "lightning", "learn2learn", "easyfsl", "higher", "torchopt", "jax", "jaxlib", "optax", "numpy")
BASES = ("mamllit", "mamllit-eager")
COLUMNS = [
    "row", "group", "competitor", "device", "threads", "tasks", "ways", "shots", "queries", "inner_steps", "first_order",
    "seconds_median", "seconds_min", "seconds_max", "rounds", "ratio_median", "ratio_min", "ratio_max", "compile_seconds",
    "peak_mib", "error_float64", "error_float32", "flops", "matmul_flops_per_second", "floor_seconds", "floor_share",
    "gpu_busy_share",
]  # fmt: skip


def base_of(entries: Sequence[Measured]) -> Measured:
    """What the others are compared with: mamllit, compiled where that was measured.

    Raises:
        ValueError: where mamllit was not measured.
    """
    for name in BASES:
        for entry in entries:
            if entry.name == name:
                return entry
    raise ValueError(f"{' or '.join(BASES)} must be among the competitors, which are {[entry.name for entry in entries]}")


def records(entries: Sequence[Measured], matmul: float) -> list[dict[str, Any]]:
    """One record per competitor of one row; `matmul` is the machine's rate in operations per second.

    A ratio is a competitor's time over mamllit's in the same round: above 1, mamllit is faster.
    """
    base, out = base_of(entries), []
    for entry in entries:
        row, against, flops = entry.row, ratios(entry, base), analytic_flops(entry.row)
        values = [
            row.name, row.group, entry.name, entry.device, entry.threads, row.tasks, row.ways, row.shots, row.queries,
            row.inner_steps, row.first_order, entry.median, min(entry.rounds), max(entry.rounds), len(entry.rounds),
            statistics.median(against), min(against), max(against), entry.compile_seconds, entry.peak_bytes / 2**20,
            entry.error64, entry.error32, flops, matmul, flops / matmul, flops / matmul / entry.median, entry.busy_share,
        ]  # fmt: skip
        out.append(dict(zip(COLUMNS, values, strict=True)))
    return out


def write_csv(path: Path, table: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)


def facts() -> dict[str, str]:
    """The machine, the versions, the date and the commit."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "commit": _commit(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **versions,
    }


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def duration(seconds: float) -> str:
    """Three significant figures: 0.231 ms, 45.6 ms, 3.21 s."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def markdown(table: Sequence[dict[str, Any]], about: dict[str, str]) -> str:
    """The tables of a run."""
    lines = ["# Meta-training steps", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    for device, threads in dict.fromkeys((r["device"], r["threads"]) for r in table):
        here = [r for r in table if (r["device"], r["threads"]) == (device, threads)]
        lines += [f"## {device}, threads: {threads}", ""]
        lines += [*_steps(here), "", *_memory(here), ""]
    return "\n".join(lines)


def _steps(table: Sequence[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(r["competitor"] for r in table))
    rate = table[0]["matmul_flops_per_second"]
    lines = [
        "One step: the median time, and in brackets how many times mamllit's it is (median; least to most over the rounds).",
        f"Floor: operations of the step over {rate / 1e9:.0f} GFLOP/s (a large float32 product); share: of mamllit's time.",
        "",
        "| row | " + " | ".join(names) + " | floor | share | compile |",
        "| --- " * (len(names) + 4) + "|",
    ]
    for row in dict.fromkeys(r["row"] for r in table):
        cells = {r["competitor"]: r for r in table if r["row"] == row}
        base = next(cells[name] for name in BASES if name in cells)
        lines.append(
            f"| {row} | " + " | ".join(_step(cells.get(name), base) for name in names)
            + f" | {duration(base['floor_seconds'])} | {base['floor_share']:.0%} | {base['compile_seconds']:.0f} s |"
        )  # fmt: skip
    return lines


def _step(record: dict[str, Any] | None, base: dict[str, Any]) -> str:
    if record is None:
        return "-"
    if record is base:
        return duration(record["seconds_median"])
    spread = f"{record['ratio_min']:.2f} to {record['ratio_max']:.2f}"
    return f"{duration(record['seconds_median'])} ({record['ratio_median']:.2f}; {spread})"


def _memory(table: Sequence[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(r["competitor"] for r in table))
    lines = ["Peak memory of a step beyond the built network, MiB.", "", "| row | " + " | ".join(names) + " |"]
    lines.append("| --- " * (len(names) + 1) + "|")
    for row in dict.fromkeys(r["row"] for r in table):
        cells = {r["competitor"]: r["peak_mib"] for r in table if r["row"] == row}
        known = {name: f"{value:.0f}" for name, value in cells.items() if value == value}
        if known:
            lines.append(f"| {row} | " + " | ".join(known.get(name, "-") for name in names) + " |")
    return lines
