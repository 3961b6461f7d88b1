"""Figures of adaptation: functions from tensors to a matplotlib Figure, no input or output."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mamllit.core.metrics import Summary


def regression_adaptation(
    x: Tensor, truth: Tensor, support_x: Tensor, support_y: Tensor, predictions: Mapping[int, Tensor], title: str
) -> Figure:
    """One-dimensional tasks before and after gradient steps (Finn et al. 2017, figure 2).

    Args:
        x: [P] where the curves are drawn.
        truth: [T, P], one panel per task.
        support_x, support_y: [T, K].
        predictions: number of gradient steps -> [T, P].
    """
    tasks = len(truth)
    figure = Figure(figsize=(4.2 * tasks, 3.4), layout="constrained")
    for task in range(tasks):
        axes = figure.add_subplot(1, tasks, task + 1)
        axes.plot(x, truth[task], color="#c0392b", linewidth=2, label="ground truth")
        styles = [":", "--", "-", "-."]
        for i, (steps, curve) in enumerate(predictions.items()):
            label = "before adaptation" if steps == 0 else f"after {steps} step{'s' if steps > 1 else ''}"
            shade = 0.65 - 0.55 * i / max(len(predictions) - 1, 1)
            axes.plot(x, curve[task], styles[i % 4], color=(shade, shade * 0.9 + 0.1, 0.75), linewidth=1.8, label=label)
        axes.plot(support_x[task], support_y[task], "^", color="#6c3483", markersize=7, label="support")
        axes.set_xlabel("x")
        axes.set_ylim(-5.6, 5.6)
        if task == 0:
            axes.set_ylabel("y")
            axes.legend(fontsize=7, loc="lower left")
    figure.suptitle(title, fontsize=10)
    return figure


def learning_curve(
    summaries: Mapping[str, Summary],
    metric: str,
    title: str,
    diverging: bool,
    counted: str = "gradient steps",
    firsts: Mapping[str, int] | None = None,
) -> Figure:
    """The metric against the number of gradient steps, or what else is `counted`, one line per evaluation set, with its 95%
    interval.

    Args:
        diverging: draw the median (dashed) beside the mean, for metrics that a few diverged episodes can carry away.
        firsts: where a set's line begins, where it is not at 0.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, summary) in enumerate(summaries.items()):
        first, color = (firsts or {}).get(name, 0), f"C{i}"
        steps = range(first, first + len(summary.mean))
        axes.errorbar(steps, summary.mean, yerr=summary.ci95, color=color, capsize=2, marker="o", markersize=3, label=name)
        if diverging:
            axes.plot(steps, summary.median, "--", color=color, linewidth=1)
    axes.set_xlabel(counted + (" (dashed: median)" if diverging else ""))
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if diverging:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(title, fontsize=10)
    return figure


def stream_answers(images: Tensor, labels: Tensor, answers: Tensor, title: str, dark_on_light: bool = False) -> Figure:
    """A stream of images, ten in a row, each with its label and in red what was answered instead.

    Args:
        images: [L, C, H, W].
        labels, answers: [L].
        dark_on_light: 1 is drawn black, as ink.
    """
    rows = -(-len(images) // 10)
    figure = Figure(figsize=(8, 0.95 * rows + 0.5), layout="constrained")
    for i, image in enumerate(images):
        axes = figure.add_subplot(rows, 10, i + 1)
        show_image(axes, image, dark_on_light)
        label, answer = int(labels[i]), int(answers[i])
        right = label == answer
        axes.set_title(f"{label}" if right else f"{label}, not {answer}", fontsize=7, color="#1e8449" if right else "#c0392b")
    figure.suptitle(title, fontsize=9)
    return figure


def show_image(axes: Any, image: Tensor, dark_on_light: bool) -> None:
    """Draw an image [C, H, W] in [0, 1] without ticks."""
    picture = (1 - image if dark_on_light else image).permute(1, 2, 0)
    axes.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


def classification_adaptation(
    support: Tensor,
    query: Tensor,
    labels: Tensor,
    probabilities: Mapping[int, Tensor],
    title: str,
    dark_on_light: bool = False,
    headline: int | None = None,
) -> Figure:
    """One classification episode: the support images, and each query image's class probabilities over the steps.

    Args:
        support: [N, C, H, W], the first support image of each class.
        query: [n, C, H, W], `labels` [n].
        probabilities: number of gradient steps -> [n, N].
        dark_on_light: 1 is drawn black, as ink.
        headline: the number of steps whose value is reported, marked by a line.
    """
    ways, queries = len(support), len(query)
    steps: Sequence[int] = list(probabilities)
    figure = Figure(figsize=(1.1 * ways + 1, 1.0 * (queries + 1) + 0.6), layout="constrained")
    grid = figure.add_gridspec(queries + 1, ways + 1)

    def show(cell: Any, image: Tensor, label: str) -> None:
        axes = figure.add_subplot(cell)
        show_image(axes, image, dark_on_light)
        axes.set_title(label, fontsize=7)

    for way in range(ways):
        show(grid[0, way + 1], support[way], f"support {way}")
    for row in range(queries):
        show(grid[row + 1, 0], query[row], f"query, class {int(labels[row])}")
        axes = figure.add_subplot(grid[row + 1, 1:])
        for way in range(ways):
            curve = [float(probabilities[step][row, way]) for step in steps]
            true = way == int(labels[row])
            axes.plot(steps, curve, color="#1e8449" if true else "#aaaaaa", linewidth=2 if true else 1)
        if headline is not None:
            axes.axvline(headline, color="#cccccc", linewidth=1, zorder=0)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=6)
        if row == queries - 1:
            marked = "" if headline is None else f"; line: {headline}, the reported number"
            axes.set_xlabel(f"gradient steps (green: probability of the true class{marked})", fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure
