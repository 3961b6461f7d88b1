"""The table as a figure: what was measured beside the paper's interval, a panel per metric."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from reproduction.table import Row

PUBLISHED, MEASURED, INDUCTIVE = "#bbbbbb", "#1a5276", "#b9770e"


def draw(rows: Sequence[Row], title: str) -> Figure:
    """Rows that have a published value, from top to bottom; all rows where none has one."""
    shown = [row for row in rows if row.published is not None] or list(rows)
    metrics = sorted({row.metric for row in shown})
    heights = [sum(row.metric == metric for row in shown) for metric in metrics]
    figure = Figure(figsize=(9, 1.4 + 0.4 * sum(heights) + 0.6 * len(metrics)), layout="constrained")
    grid = figure.subplots(max(len(metrics), 1), 1, squeeze=False, height_ratios=[h + 1 for h in heights] or None)
    for axes, metric in zip(grid[:, 0], metrics, strict=False):
        own = [row for row in shown if row.metric == metric]
        for y, row in enumerate(own):
            if row.published is not None:
                half = row.published_ci95 or 0.0
                axes.fill_betweenx([y - 0.4, y + 0.4], row.published - half, row.published + half, color=PUBLISHED, alpha=0.6)
                axes.plot([row.published] * 2, [y - 0.4, y + 0.4], color="#777777", linewidth=1)
            mean, ci95 = row.transductive
            axes.errorbar(mean, y, xerr=ci95, fmt="o", color=MEASURED, capsize=3, markersize=5)
            if row.inductive is not None:
                axes.errorbar(
                    row.inductive[0], y + 0.2, xerr=row.inductive[1], fmt="o", mfc="white", color=INDUCTIVE, capsize=3
                )
        axes.set_yticks(range(len(own)), [label(row) for row in own], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(metric, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{title}\nfilled: transductive; hollow: inductive; grey: published", fontsize=9)
    return figure


def label(row: Row) -> str:
    """What stands left of a row."""
    return (
        f"{row.cell.removeprefix('maml/')}, seed {row.seed}, {row.checkpoint}\n"
        f"{row.inner_steps} inner steps; {row.steps_done:,} of {row.steps_asked:,} iterations"
    )
