"""Figures of policies: paths in the plane before and after adapting. No input or output."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor


def navigation_paths(goals: Tensor, paths: Mapping[int, Tensor], valid: Mapping[int, Tensor], title: str) -> Figure:
    """Trajectories in the plane, one panel per task, with the goal (Finn et al. 2017, figure 4).

    Args:
        goals: [T, 2].
        paths: number of gradient steps -> [T, K, H, 2].
        valid: number of gradient steps -> [T, K, H], 1 until a trajectory ended.
    """
    tasks = len(goals)
    figure = Figure(figsize=(3.4 * tasks, 3.7), layout="constrained")
    colors = dict(zip(paths, ("#b0b0b0", "#2e86c1", "#1e8449", "#6c3483"), strict=False))
    for task in range(tasks):
        axes = figure.add_subplot(1, tasks, task + 1)
        for steps, places in paths.items():
            for k, (path, seen) in enumerate(zip(places[task], valid[steps][task], strict=True)):
                own = path[: int(seen.sum())]
                label = None if k else "before adapting" if steps == 0 else f"after {steps} step{'s' * (steps > 1)}"
                axes.plot(own[:, 0], own[:, 1], "-", color=colors[steps], linewidth=1.1, label=label)
        axes.plot(*goals[task].tolist(), "*", color="#c0392b", markersize=13, label="goal")
        axes.plot(0, 0, "ko", markersize=4)
        axes.set_xlim(-0.85, 0.85)
        axes.set_ylim(-0.85, 0.85)
        axes.set_aspect("equal")
        axes.set_xticks([-0.5, 0, 0.5])
        axes.set_yticks([-0.5, 0, 0.5])
        if task == 0:
            axes.legend(fontsize=7, loc="lower left")
    figure.suptitle(title, fontsize=10)
    return figure
