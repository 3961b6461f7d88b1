"""Freed memory stays with the process, so that the next tensor of the same size needs no fresh pages."""

import ctypes
import subprocess
import sys

import pytest

from mamllit.kernels.malloc import keep_memory

CODE = """
import resource, torch
from mamllit.kernels.malloc import keep_memory
{keep}
for _ in range(15):  # the heap grows for a few
    torch.ones(2**24)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def glibc() -> bool:
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "gnu_get_libc_version")
    except OSError:
        return False


def page_faults(keep: str) -> int:
    command = [sys.executable, "-c", CODE.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not glibc(), reason="needs Linux with glibc")
def test_the_same_memory_serves_again() -> None:
    """Five tensors of 16,384 pages each: all faulted in anew without it, hardly any with it."""
    assert page_faults("assert keep_memory()") < 2_000
    assert page_faults("") > 5 * page_faults("keep_memory()") + 100


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_memory() is False


def test_without_glibc_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_memory() is False
