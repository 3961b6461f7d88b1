"""A learn2learn task, examples with labels in any order, as an episode: by class, support first."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from mamllit.core.episode import Episode, Examples


def partition(x: Tensor, y: Tensor, ways: int, per_class: int, split: str) -> tuple[Tensor, Tensor]:
    """The examples `x` [N * P, ...] in order of their labels `y`, which become 0 to N - 1; on the CPU.

    Raises:
        ValueError: where there are not `ways` classes of `per_class` examples each.
    """
    x, y = x.cpu(), y.cpu()
    labels, label, counts = torch.unique(y, return_inverse=True, return_counts=True)
    if len(labels) != ways or bool((counts != per_class).any()):
        found = f"{len(labels)} classes of {int(counts.min())}" + (
            f" to {int(counts.max())}" if counts.unique().numel() > 1 else ""
        )
        raise ValueError(
            f"a task of the {split} task set has {found} examples, but ways, shots and queries need {ways} classes of "
            f"{per_class} (shots + queries). Make them agree: build the tasks with NWays(n=ways) and KShots(k=shots + queries)"
        )
    order = torch.argsort(label, stable=True)
    return x[order].contiguous(), label[order]


def episode_of(x: Tensor, y: Tensor, ways: int, shots: int) -> Episode:
    """Episodes of tasks that were partitioned: `x` [T, N * P, ...], `y` [T, N * P]."""
    x, y = x.unflatten(1, (ways, -1)), y.unflatten(1, (ways, -1))
    return Episode(
        Examples(x[:, :, :shots].flatten(1, 2), y[:, :, :shots].flatten(1, 2), ways),
        Examples(x[:, :, shots:].flatten(1, 2), y[:, :, shots:].flatten(1, 2), ways),
    )


def shared_images(first: Any, second: Any, tasks: int = 100) -> int:
    """How many different examples `tasks` tasks of both task sets have in common, byte for byte."""
    return len(_hashes(first, tasks) & _hashes(second, tasks))


def _hashes(taskset: Any, tasks: int) -> set[bytes]:
    count = tasks if taskset.num_tasks < 0 else min(tasks, taskset.num_tasks)
    drawn = (taskset.get_task(taskset.sample_task_description())[0].cpu() for _ in range(count))
    return {hashlib.sha256(x.contiguous().numpy().tobytes()).digest() for task in drawn for x in task}
