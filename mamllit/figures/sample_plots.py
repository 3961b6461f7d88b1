"""Figures of what methods draw and learn: predictive samples, mask probabilities, step sizes. No input or output."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from mamllit.figures.plotting import show_image


def predictive_samples(x: Tensor, truth: Tensor, support_x: Tensor, support_y: Tensor, samples: Tensor, title: str) -> Figure:
    """The curves of a task's sampled models, their mean, and a band of two standard deviations around it.

    Args:
        x: [X] where the curves are drawn.
        truth: [T, X], one panel per task.
        support_x, support_y: [T, K].
        samples: [T, P, X].
    """
    tasks = len(truth)
    figure = Figure(figsize=(4.2 * tasks, 3.4), layout="constrained")
    for task in range(tasks):
        axes = figure.add_subplot(1, tasks, task + 1)
        mean, spread = samples[task].mean(0), samples[task].std(0, correction=0)
        axes.fill_between(x, mean - 2 * spread, mean + 2 * spread, color="#aed6f1", label="mean ± 2 standard deviations")
        for i, curve in enumerate(samples[task]):
            axes.plot(x, curve, color="#2e86c1", linewidth=0.7, alpha=0.6, label="sampled models" if i == 0 else None)
        axes.plot(x, mean, color="#1b4f72", linewidth=1.8, label="mean")
        axes.plot(x, truth[task], color="#c0392b", linewidth=2, label="ground truth")
        axes.plot(support_x[task], support_y[task], "^", color="#6c3483", markersize=7, label="support")
        axes.set_xlabel("x")
        if task == 0:
            axes.set_ylabel("y")
            axes.legend(fontsize=7, loc="lower left")
    figure.suptitle(title, fontsize=10)
    return figure


def conditioned_samples(sets: Tensor, samples: Tensor, title: str, dark_on_light: bool = False) -> Figure:
    """Sets of images, one in a row, and what a model of sets makes of each.

    Args:
        sets: [N, n, C, H, W].
        samples: [N, m, C, H, W].
        dark_on_light: 1 is drawn black, as ink.
    """
    (rows, shown), made = sets.shape[:2], samples.shape[1]
    figure = Figure(figsize=(0.7 * (shown + made + 1), 0.75 * rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, shown + made + 1)
    for row in range(rows):
        for column, image in enumerate([*sets[row], None, *samples[row]]):
            if image is not None:
                show_image(figure.add_subplot(grid[row, column]), image, dark_on_light)
    figure.suptitle(f"{title}: sets (left), and samples given each (right)", fontsize=9)
    return figure


def mask_probabilities(layers: Mapping[str, Tensor], title: str) -> Figure:
    """The probability of each output unit's bit being 1, per layer (Lee & Choi 2018): units in order of it.

    Args:
        layers: name -> [outputs].
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, probabilities in layers.items():
        units = len(probabilities)
        place = [i / (units - 1) if units > 1 else 0.5 for i in range(units)]
        mean = probabilities.mean().item()
        axes.plot(place, probabilities.sort().values, "o-", markersize=2.5, linewidth=1, label=f"{name} (mean {mean:.2f})")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("output units of the layer, in order")
    axes.set_ylabel("probability of being adapted")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(title, fontsize=10)
    return figure


def step_sizes(layers: Mapping[str, Tensor], title: str) -> Figure:
    """The learned step sizes of each parameter (Li et al. 2017): in order, on an axis that is linear within 0.01 of zero.

    Args:
        layers: name -> step sizes of any shape; below zero the step goes up the support loss.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="#777777", linewidth=0.8)
    for name, sizes in layers.items():
        values = sizes.flatten().sort().values
        place = [(i + 0.5) / len(values) for i in range(len(values))]
        label = f"{name} ({100 * (values < 0).double().mean().item():.0f}% below zero)"
        axes.plot(place, values, linewidth=1.4, marker="o" if len(values) == 1 else "", label=label)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xlabel("share of the parameter's entries, in order of their step size")
    axes.set_ylabel("step size")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(title, fontsize=10)
    return figure
