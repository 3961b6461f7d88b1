"""Float32 matrix products on a CPU by the faster of the two libraries that PyTorch has for them, with the same precision.

PyTorch takes MKL, which leaves AVX-512 unused on CPUs that are not Intel's: on a Zen 5 oneDNN is two to three times as fast, a
meta-gradient of 20-way Omniglot takes two thirds of the time. PyTorch asks oneDNN only where float32 products may be rounded
to bfloat16 ("medium"), and oneDNN rounds only where the CPU has units for bfloat16 matrices (AMX, Intel's). So on the others
"medium" is the way to oneDNN's full float32. Whether it is that is tested here, once per process, with numbers that bfloat16
cannot hold.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SIDE = 64  # of the test's matrices; oneDNN is not asked for small ones


@contextmanager
def fast_products(x: Tensor) -> Iterator[None]:
    """Within, float32 products on a CPU run by oneDNN, where `onednn_is_better` and `x` is a batch of images, [T, n, C, H, W].

    Products as small as those of the sine networks would take longer. Leaves everything as it is where somebody has called
    `torch.set_float32_matmul_precision`, or set the newer `fp32_precision`. Holds for the whole process, threads included.
    """
    if x.device.type != "cpu" or x.dim() != 5 or not onednn_is_better() or not _untouched():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@cache
def onednn_is_better() -> bool:
    """Whether this is a CPU with AVX-512, not Intel's, whose oneDNN keeps float32's precision under "medium"."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _vendor() in ("", "GenuineIntel"):
        return False
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and _untouched() and _is_exact()


def _untouched() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # PyTorch's newer settings are in use, which this one cannot express
        return False


def _vendor() -> str:
    """The maker of the CPU as Linux tells it, "AuthenticAMD" for one; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _is_exact() -> bool:
    """Whether under "medium" a product with the identity gives back numbers of 24 bits."""
    numbers = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    one = torch.eye(SIDE).expand(2, SIDE, SIDE)
    torch.set_float32_matmul_precision("medium")
    try:
        return torch.equal(torch.bmm(one, numbers), numbers) and torch.equal(torch.bmm(numbers, one), numbers)
    finally:
        torch.set_float32_matmul_precision("highest")
