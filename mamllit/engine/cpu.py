"""Makes PyTorch fast on a CPU for all that computes here: meta-gradients, evaluations, adapting to one's own images.

Freed memory is kept for the next step (`mamllit.kernels.malloc`), and float32 products of images run by the faster of PyTorch's
two libraries (`mamllit.kernels.matmul`). Neither changes a result beyond rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from mamllit.kernels.malloc import keep_memory
from mamllit.kernels.matmul import fast_products


@contextmanager
def fast_on_cpu(x: Tensor) -> Iterator[None]:
    """Within, computing with a batch of episodes whose inputs are `x` [T, n, ...] is fast on a CPU; elsewhere nothing happens.

    The memory is kept from then on, in the whole process.
    """
    prepare(x.device)
    with fast_products(x):
        yield


def prepare(device: torch.device) -> None:
    """Keep freed memory in this process, where `device` is a CPU; only the first call does anything."""
    if device.type == "cpu":
        _keep_memory_once()


@cache
def _keep_memory_once() -> bool:
    return keep_memory()
