"""Reads files of unknown origin: only regular files, and only up to a sensible size."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

IMAGE = 2**28  # bytes of an image file; 2**26 pixels of a BMP with four bytes each
TABLE = 2**26  # bytes of a list of images or classes, or of a cache's description


def open_file(path: str | Path) -> BinaryIO:
    """A file, opened to be read.

    Raises:
        OSError: if it cannot be read, or is a device, a pipe or a socket, which could block or never end.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # a pipe would wait for its other end
    if problem := irregular(os.fstat(file.fileno())):
        file.close()
        raise OSError(f"is {problem}, not a file")
    return file


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: as `open_file`.
        ValueError: if it has more than `limit` bytes.
    """
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise ValueError(f"has {size:,} bytes, more than the limit of {limit:,}; make it smaller")
        return file.read(limit)


def read_text(path: str | Path, limit: int = TABLE) -> str:
    """A text in UTF-8, or in UTF-16 with its mark.

    Raises:
        OSError: as `read_bytes`.
        ValueError: for a file that is too large, or in another encoding.
    """
    data = read_bytes(path, limit)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"is not UTF-8 (line {line}: {data[error.start : error.start + 8]!r}); save it again in UTF-8"
        ) from error


def irregular(status: os.stat_result) -> str:
    """What is at a path that is no regular file, in words; empty for a file or a folder."""
    kinds = {
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISSOCK: "a socket",
    }
    return next((words for test, words in kinds.items() if test(status.st_mode)), "")
