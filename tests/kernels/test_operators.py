"""What the operators on batches of images share: how tasks are divided into blocks."""

import pytest
import torch

from mamllit.kernels import operators
from mamllit.kernels.operators import balanced


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_blocks_are_full_for_every_thread_and_as_equal_as_can_be(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for tasks in range(1, 40):
        for wanted in range(50):
            size = balanced(tasks, wanted)
            assert 1 <= size <= tasks
            assert size % threads == 0 or size == tasks  # no thread is idle but in the last block
            assert size <= max(wanted, threads)
            largest = max(wanted // threads, 1) * threads
            assert -(-tasks // size) == -(-tasks // largest)  # as few blocks as the wish allows
            last = tasks - (-(-tasks // size) - 1) * size
            assert size - last < threads * -(-tasks // size)  # and they differ by no more than the division leaves


def test_the_example_of_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [balanced(16, wanted) for wanted in (0, 1, 5, 7, 16, 100)] == [2, 2, 4, 6, 16, 16]
    monkeypatch.setattr(operators, "CACHED_BYTES", 4 * 10 * 5)
    assert operators.tasks_at_once(torch.empty(16, 10)) == 4
