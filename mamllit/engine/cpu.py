"""Makes PyTorch fast on a CPU for all that computes here: meta-gradients, evaluations, adapting to one's own images.

Freed memory is kept for the next step (`mamllit.kernels.malloc`), and float32 products of images run by the faster of PyTorch's
two libraries (`mamllit.kernels.matmul`). Neither changes a result beyond rounding. Where there is no GPU, Adam does not search
for one at each step: Lightning has PyTorch ask NVML, which takes 0.3 ms each time where its library is missing.
"""

import os
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
    """Keep freed memory in this process, where `device` is a CPU, and search for no GPU; only the first call does anything."""
    if device.type == "cpu":
        _prepare_once()


@cache
def _prepare_once() -> None:
    keep_memory()
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
