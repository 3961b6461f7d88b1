"""Locks on open files: held by one, refused to others, given back at the end; and where there are none."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mamllit.runs import locks


def test_a_lock_that_is_held_is_refused_and_given_back(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "a") as first, open(tmp_path / "lock", "a") as second:
        assert locks.lock(first)
        with pytest.raises(BlockingIOError, match="another process holds the lock"):
            locks.lock(second)
        first.close()
        assert locks.lock(second, wait=True)


def test_a_disk_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with open(tmp_path / "lock", "a") as file:
        assert not locks.lock(file)


def test_windows_locks_by_its_own_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        if held:
            raise PermissionError(errno.EACCES, "Permission denied")
        held.append(mode)

    windows: Any = SimpleNamespace(locking=locking, LK_LOCK=1, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setattr(locks, "fcntl", None)
    with open(tmp_path / "lock", "a") as file:
        assert locks.lock(file)
        with pytest.raises(BlockingIOError, match="another process holds the lock"):
            locks.lock(file)
    assert held == [2]
