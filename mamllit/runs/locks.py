"""Locks on open files, released however the process ends; on Linux, macOS and Windows.

Not the `filelock` package: on a disk without locks it would wait for ever, and it opens the file by itself, following links.
"""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: IO, wait: bool = False, across_machines: bool = False) -> bool:
    """Take the lock of an open file; False on a disk that has no locks.

    Args:
        wait: wait until the process that holds it releases it.
        across_machines: by a POSIX record lock, which network file systems pass on; it does not keep a process from itself.

    Raises:
        BlockingIOError: where another holds it, and `wait` is False.
    """
    if fcntl is None:
        return _lock_on_windows(file, wait)
    take = fcntl.lockf if across_machines else fcntl.flock
    try:
        take(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError(error.errno, "another process holds the lock") from error
    except OSError:
        return False
    return True


def _lock_on_windows(file: IO, wait: bool) -> bool:
    import msvcrt

    file.seek(0)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError as error:
        raise BlockingIOError(error.errno, "another process holds the lock") from error
    except OSError:
        return False
    return True
