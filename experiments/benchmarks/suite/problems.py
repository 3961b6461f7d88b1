"""What is timed: the rows of the table, each a network, a shape of episodes and an inner loop.

Every parameter is adapted (`frozen=()`), for that is what the peers' loops do, and losses are summed and divided by the shots,
as in the MAML paper's code. Images are random numbers of the right shape: what a step costs does not depend on the pictures.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import flatten, take, tree_map, unflatten
from mamllit.methods import MAML
from mamllit.objectives import Classification, Regression


@dataclass(frozen=True)
class Problem:
    """One row. `ways` is 1 in regression; `queries` count per class; `channels` 0 means the sine network, an MLP.

    `group` tells the rows of the issue ("step") from those of a scaling figure ("tasks", "inner steps", "queries").
    """

    name: str
    tasks: int
    ways: int
    shots: int
    queries: int
    inner_steps: int
    inner_lr: float
    first_order: bool = False
    channels: int = 0
    side: int = 1
    filters: int = 40
    downsample: Literal["stride", "max_pool"] = "stride"
    group: str = "step"

    @property
    def support_size(self) -> int:
        return self.ways * self.shots

    @property
    def query_size(self) -> int:
        return self.ways * self.queries


SINE = Problem("sine 10-shot, 25 tasks", 25, 1, 10, 10, 1, 0.01)
OMNIGLOT = Problem("Omniglot 5-way 1-shot, 1 query", 32, 5, 1, 1, 1, 0.4, channels=1, side=28, filters=64)
MINI = Problem(
    "mini-ImageNet 5-way 1-shot", 4, 5, 1, 15, 5, 0.01, channels=3, side=84, filters=32, downsample="max_pool"
)  # fmt: skip
SECOND_ORDER = {
    "sine": SINE,
    "omniglot-5w1s-1q": OMNIGLOT,
    "omniglot-5w1s-15q": replace(OMNIGLOT, name="Omniglot 5-way 1-shot, 15 queries", queries=15),
    "omniglot-20w1s": replace(OMNIGLOT, name="Omniglot 20-way 1-shot", tasks=16, ways=20, inner_steps=5, inner_lr=0.1),
    "mini-1s": MINI,
    "mini-5s": replace(MINI, name="mini-ImageNet 5-way 5-shot", tasks=2, shots=5),
}
STEP_ROWS = SECOND_ORDER | {
    f"{key}-fo": replace(row, name=f"{row.name}, first order", first_order=True) for key, row in SECOND_ORDER.items()
}
SCALED = replace(OMNIGLOT, tasks=4, inner_lr=0.01)
SCALING_ROWS = {
    **{f"tasks-{n}": replace(SCALED, name=f"{n} tasks", tasks=n, group="tasks") for n in (1, 4, 16, 64, 256)},
    **{
        f"steps-{n}": replace(SCALED, name=f"{n} inner steps", inner_steps=n, group="inner steps")
        for n in (1, 2, 5, 10, 20, 50)
    },
    **{f"queries-{n}": replace(SCALED, name=f"{n} queries", queries=n, group="queries") for n in (1, 2, 5, 15, 30)},
}
ROWS = STEP_ROWS | SCALING_ROWS


def quick(row: Problem) -> Problem:
    """The same row with few tasks and small images, for trying the suite out; its numbers mean nothing."""
    small = few(row)
    return small if row.channels == 0 else replace(small, ways=min(row.ways, 3), side=16, filters=4)


def few(row: Problem) -> Problem:
    """The same row with few tasks and images of their size, for a network that is not made for another."""
    return replace(row, tasks=min(row.tasks, 3), queries=min(row.queries, 2), inner_steps=min(row.inner_steps, 2))


def network(row: Problem) -> MLP | Conv4:
    """mamllit's network with seeded weights, float32."""
    torch.manual_seed(0)
    if row.channels == 0:
        return MLP(1, [row.filters, row.filters], 1)
    return Conv4(row.channels, row.filters, row.ways, row.side, row.downsample, implementation="fast")


def method(row: Problem, backbone: nn.Module) -> MAML:
    """mamllit's MAML on `backbone`."""
    objective = Regression() if row.channels == 0 else Classification()
    return MAML(backbone, objective, row.inner_lr, row.inner_steps, "sum_over_shots", row.first_order, frozen=())


def episodes(row: Problem, tasks: int | None = None) -> Episode:
    """A seeded meta-batch in float32 on the CPU; `tasks` overrides the row's number (the first ones stay the same)."""
    tasks = row.tasks if tasks is None else tasks
    made = [_episode(row, torch.Generator().manual_seed(i)) for i in range(tasks)]
    tensors, structure = zip(*map(flatten, made), strict=True)
    return unflatten(structure[0], [torch.stack(own) for own in zip(*tensors, strict=True)])


def _episode(row: Problem, generator: torch.Generator) -> Episode:
    def images(per_class: int) -> Examples:
        x = torch.rand(row.ways * per_class, row.channels, row.side, row.side, generator=generator)
        return Examples(x, torch.arange(row.ways).repeat_interleave(per_class), row.ways)

    if row.channels > 0:
        return Episode(images(row.shots), images(row.queries))
    amplitude = 0.1 + 4.9 * torch.rand((), generator=generator)
    phase = math.pi * torch.rand((), generator=generator)
    x = 10 * torch.rand(row.shots + row.queries, 1, generator=generator) - 5
    y = amplitude * torch.sin(x - phase)
    return Episode(Examples(x[: row.shots], y[: row.shots]), Examples(x[row.shots :], y[row.shots :]))


def converted(batch: Episode, dtype: torch.dtype, device: str) -> Episode:
    """The batch on `device`, its floating-point tensors as `dtype`."""

    def one(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return tree_map(one, batch)


def sine_batches(row: Problem, steps: int, device: str) -> Iterator[Episode]:
    """The training stream of a sine run: as `mamllit fit` draws it, in blocks of steps."""
    from mamllit.data import SineDataModule  # here, because it brings Lightning, which takes seconds to import

    data = SineDataModule(row.shots, row.queries, row.tasks)
    block = 16
    for first in range(0, steps, block):
        many = data.build(data.draw(0, "train", row.shots, row.queries, first * row.tasks, block * row.tasks)).episodes
        many = converted(many, torch.float32, device)
        for i in range(min(block, steps - first)):
            yield take(many, i * row.tasks, (i + 1) * row.tasks)
