"""Figures of the scaling rows: time against tasks, inner steps and queries on logarithmic axes, and memory against steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

AXES = {"tasks": "tasks", "inner steps": "inner_steps", "queries": "queries"}


def scaling(table: Sequence[dict[str, Any]], group: str, value: str, label: str) -> Figure:
    """`value` (a column) of the rows of one scaling group, a line per competitor, and the line of cost proportional to x."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes: Axes = figure.add_subplot()
    records = [r for r in table if r["group"] == group and r[value] == r[value] and r[value] > 0]
    for name in dict.fromkeys(r["competitor"] for r in records):
        points = sorted((r[AXES[group]], r[value]) for r in records if r["competitor"] == name)
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    if records:
        name = records[0]["competitor"]
        points = sorted((r[AXES[group]], r[value]) for r in records if r["competitor"] == name)
        last, top = points[-1]
        axes.loglog([x for x, _ in points], [top * x / last for x, _ in points], "k--", linewidth=1, label="proportional")
    axes.set(xlabel=group, ylabel=label)
    axes.legend()
    return figure


def write_figures(folder: Path, table: Sequence[dict[str, Any]]) -> list[Path]:
    """A PNG per device, number of threads and scaling group that was measured, and memory against inner steps."""
    written = []
    for device, threads in dict.fromkeys((r["device"], r["threads"]) for r in table):
        here = [r for r in table if (r["device"], r["threads"]) == (device, threads)]
        for group in AXES:
            if not any(r["group"] == group for r in here):
                continue
            kinds = [("time", "seconds_median", "seconds per step")]
            kinds += [("memory", "peak_mib", "peak memory of a step, MiB")] if group == "inner steps" else []
            for kind, value, label in kinds:
                path = folder / f"{kind}_{group.replace(' ', '_')}_{device}_{threads}threads.png"
                scaling(here, group, value, label).savefig(path, dpi=150)
                written.append(path)
    return written
