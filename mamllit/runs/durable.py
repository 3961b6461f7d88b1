"""Files that are complete or absent, whatever happens while they are written.

A file is written beside its place, brought to the disk, and put in place by renaming: a process that is killed, or a machine
that loses power, leaves the old file or the new one. In a folder that others can write to, nobody can choose where the bytes
go: what is written first has a name that cannot be guessed and is created anew, and a link in its place is not followed.
"""

import os
import re
import secrets
import stat
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import IO

PART = ".part"


def write(path: str | Path, content: str | bytes) -> None:
    """Replace the file at `path`, all or nothing; its folder is made.

    Raises:
        OSError: where the disk is full or the folder cannot be written; the old file is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        with part.open("xb") as file:  # exclusive: neither a file nor a link that is there already
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # on a full disk it would take the room of what comes next
        raise
    _flush_folder(path.parent)


def link(path: Path, other: Path) -> None:
    """Give a file a second name, replacing what has that name; copies where the file system has no links."""
    part = _beside(other)
    try:
        os.link(path, part)
    except OSError:
        write(other, path.read_bytes())
        return
    os.replace(part, other)


def clear(folder: Path) -> None:
    """Remove the half-written files that killed processes of this user left in `folder`; nobody else may be writing there."""
    for path in folder.glob(f".*{PART}"):
        status = path.lstat()
        if re.search(rf"\.[0-9a-f]{{16}}{PART}$", path.name) and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            path.unlink(missing_ok=True)


def open_own(path: Path, mode: str, shared: bool = False) -> IO:
    """Open a file whose name is known in advance, e.g. to go on with it or to lock it.

    Args:
        path: the file.
        mode: "ab", "wb" or "a".
        shared: whether the file may be another user's.

    Raises:
        OSError: for a link, for what is no plain file, and for another user's file.
    """

    def opener(name: str, flags: int) -> int:
        handle = os.open(name, (flags | os.O_NOFOLLOW | os.O_NONBLOCK) & ~os.O_TRUNC, 0o666)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not (shared or status.st_uid == os.geteuid()):
            os.close(handle)
            raise PermissionError(f"{path} is not a regular file of yours, so it is not written to: remove it")
        if flags & os.O_TRUNC:
            os.ftruncate(handle, 0)
        return handle

    if path.is_symlink():
        raise PermissionError(f"{path} is a link to {os.readlink(path)}, which is not followed: remove it")
    return open(path, mode, opener=opener)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")


@cache
def _private_folder(temporary: str) -> Path:
    """A folder of this process in the system's temporary one, which no other user can enter."""
    return Path(tempfile.mkdtemp(prefix="mamllit-", dir=temporary))


def keep(path: str | Path, content: str) -> Path | None:
    """`write`; if that fails, into the system's temporary folder, or else onto the screen; a warning says where.

    Returns the file's path; None for the screen.
    """
    path = Path(path)
    try:
        write(path, content)
        return path
    except OSError as error:
        problem = f"cannot write {path} ({error.strerror or error})"
    elsewhere = Path(tempfile.gettempdir())
    try:
        elsewhere = _private_folder(str(elsewhere)) / path.name
        write(elsewhere, content)
    except OSError as error:
        print(f"{path.name}:\n{content}", flush=True)
        warnings.warn(f"{problem}, nor {elsewhere} ({error.strerror or error}); its content is printed above", stacklevel=2)
        return None
    warnings.warn(f"{problem}; it is kept as {elsewhere}", stacklevel=2)
    return elsewhere


def refusal(folder: Path) -> str | None:
    """Why `folder` cannot be written, found by trying; None where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_place(path: Path, option: str) -> None:
    """Find out by trying, before what a file is to hold is computed, whether the file can be written; its folder is made.

    Args:
        path: the file.
        option: by which the user names another.

    Raises:
        OSError: where it cannot.
    """
    reason = "it is a folder" if path.is_dir() else refusal(path.parent)
    if reason is not None:
        raise OSError(f"cannot write {path} ({reason}); name another file with {option}")


def _flush_folder(folder: Path) -> None:
    """Flush a renaming to the disk; some network file systems cannot, and keep an order of their own."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
