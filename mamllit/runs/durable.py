"""Files that are whole or not there, whatever happens while they are written.

A file is written beside its place, brought to the disk, and put in place by renaming: a process that is killed, or a machine
that loses power, leaves the old file or the new one.
"""

import os
import tempfile
import warnings
from pathlib import Path


def write(path: str | Path, content: str | bytes) -> None:
    """Replace the file at `path`, all or nothing; its folder is made.

    Raises:
        OSError: where the disk is full or the folder cannot be written; the old file is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # on a full disk it would take the room of what comes next
        raise
    _flush_folder(path.parent)


def keep(path: str | Path, content: str) -> Path | None:
    """`write`, and where that fails into the system's temporary folder, else onto the screen; a warning says where.

    Returns the file's path; None for the screen.
    """
    path = Path(path)
    try:
        write(path, content)
        return path
    except OSError as error:
        problem = f"cannot write {path} ({error.strerror or error})"
    elsewhere = Path(tempfile.gettempdir()) / f"mamllit-{os.getpid()}" / path.name
    try:
        write(elsewhere, content)
    except OSError as error:
        print(f"{path.name}:\n{content}", flush=True)
        warnings.warn(f"{problem}, nor {elsewhere} ({error.strerror or error}); its content is printed above", stacklevel=2)
        return None
    warnings.warn(f"{problem}; it is kept as {elsewhere}", stacklevel=2)
    return elsewhere


def refusal(folder: Path) -> str | None:
    """Why `folder` cannot be written, having tried; None where it can."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        probe_left = probe.parent.is_dir()
        if probe_left:
            probe.unlink(missing_ok=True)
        return error.strerror or str(error)
    return None


def _flush_folder(folder: Path) -> None:
    """Bring a renaming to the disk; some network file systems cannot, and keep their own order."""
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
