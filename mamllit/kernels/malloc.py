"""Keeps the C library from giving memory back to the system between steps, on Linux with glibc.

A training step or an evaluation on a CPU allocates and frees the same large tensors again and again. glibc serves each from
fresh pages, which the kernel must clear at first touch: on mini-ImageNet shapes that took longer than the arithmetic (one
convolution of 300 images 320 ms, of which 60 are left without it; one test episode with 15 queries 6.96 s, and 2.50).
The price is that the process holds its peak memory until it ends.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
TOP_PAD = 64 * 2**20  # bytes by which the heap grows at least


def keep_memory() -> bool:
    """Let this process keep freed memory for its own next allocations; False where the C library is not glibc.

    Called before whatever computes on a CPU (`mamllit.engine.cpu`); affects the whole process, and nothing but its speed and
    resident memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  musl has none
    except (OSError, AttributeError):
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD))
    accepted = [libc.mallopt(option, value) == 1 for option, value in options]  # set all, whatever one of them says
    return all(accepted)
