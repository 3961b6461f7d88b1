"""All methods' learning curves in one figure: a panel per method, MAML's curves in grey behind each."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduction.comparison import STEPS, Compared
from reproduction.orders import SHOTS

COLORS = {5: "#b9770e", 10: "#1a5276", 20: "#7d3c98"}
LIMITS = (0.005, 10.0)
COLUMNS = 5


def draw(rows: Sequence[Compared], title: str, reference: str = "maml/sine_10shot") -> Figure:
    """Mean error over the gradient steps, logarithmic; the band is from the least to the largest seed."""
    known = [row for row in rows if row.runs]
    behind = next((row for row in known if row.cell.name == reference), None)
    lines = max(math.ceil(len(known) / COLUMNS), 1)
    figure = Figure(figsize=(2.5 * COLUMNS, 2.15 * lines + 1.0), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, row in zip(grid, known, strict=False):
        if behind is not None and behind is not row:
            for shots in SHOTS:
                _curve(axes, behind, shots, "#bbbbbb", band=False)
        for shots in SHOTS:
            _curve(axes, row, shots, COLORS[shots], band=True)
        done = sorted({run.steps_done for run in row.runs})
        axes.set_title(f"{row.name}\n{' or '.join(f'{n:,}' for n in done)} iterations, {len(row.runs)} seed(s)", fontsize=8)
        axes.set_yscale("log")
        axes.set_ylim(*LIMITS)
        axes.set_xlim(-0.3, STEPS + 0.3)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=7)
    for axes in grid[len(known) :]:
        axes.set_visible(False)
    for i in range(0, len(grid), COLUMNS):
        grid[i].set_ylabel("mean squared error", fontsize=8)
    for axes in grid[max(len(known) - COLUMNS, 0) : len(known)]:
        axes.set_xlabel("gradient steps", fontsize=8)
        axes.tick_params(labelbottom=True)
    handles = [grid[0].plot([], [], color=COLORS[shots], label=f"K = {shots}")[0] for shots in SHOTS]
    handles += grid[0].plot([], [], color="#bbbbbb", label="MAML, the same K")
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _curve(axes: Axes, row: Compared, shots: int, color: str, band: bool) -> None:
    steps = range(min(row.steps_known(f"standard/{shots}-shot"), STEPS) + 1)
    values = [errors for s in steps if (errors := row.errors(f"standard/{shots}-shot", s)) is not None]
    means = [value.mean(1).clamp(max=1e3) for value in values]  # what is above the panel leaves it
    means = [mean.nan_to_num(nan=1e3, posinf=1e3) for mean in means]
    if len(means) == 1:  # nothing is adapted
        axes.axhline(float(means[0].mean()), color=color, linewidth=1.6)
        return
    axes.plot(steps[: len(means)], [float(mean.mean()) for mean in means], color=color, linewidth=1.6)
    if band:
        low, high = [float(mean.min()) for mean in means], [float(mean.max()) for mean in means]
        axes.fill_between(steps[: len(means)], low, high, color=color, alpha=0.2, linewidth=0)
