"""Shared by all tests: a fixed seed, the threads, and two makers of small episodes."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mamllit.core.episode import Episode, Examples

MakeEpisodes = Callable[..., Episode]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker starts a long file when the others are at their end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Two, or one in each of several test processes: more threads than cores wait for each other."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_wandb_process() -> Iterator[None]:
    """A run in this process leaves the address of its W&B process; a process that a later test starts must have its own."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def sine_episodes() -> MakeEpisodes:
    """Makes T sine tasks with K support and Q query points: x and y [T, n, 1]."""

    def make(tasks: int, shots: int = 5, queries: int = 4, dtype: torch.dtype = torch.float64) -> Episode:
        x = torch.rand(tasks, shots + queries, 1, dtype=dtype) * 10 - 5
        y = (1 + 4 * torch.rand(tasks, 1, 1, dtype=dtype)) * torch.sin(x - 3 * torch.rand(tasks, 1, 1, dtype=dtype))
        return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))

    return make


@pytest.fixture
def image_episodes() -> MakeEpisodes:
    """Makes T classification tasks of random images: x [T, N*K, C, S, S], y [T, N*K] ordered by class."""

    def make(
        tasks: int,
        ways: int = 3,
        shots: int = 2,
        queries: int = 3,
        channels: int = 1,
        side: int = 8,
        dtype: torch.dtype = torch.float64,
    ) -> Episode:
        def part(per_class: int) -> Examples:
            labels: Tensor = torch.arange(ways).repeat_interleave(per_class).expand(tasks, -1)
            return Examples(torch.rand(tasks, ways * per_class, channels, side, side, dtype=dtype), labels, ways)

        return Episode(part(shots), part(queries))

    return make
