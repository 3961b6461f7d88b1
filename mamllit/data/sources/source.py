"""What a data set on disk looks like to the loader: a `Source` lists images by class and knows when they change.

Each data set says how it finds its files; `prepare.load_pools` does the rest. Listing helpers that they share are here too.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamllit.data.sources.bounded import irregular

SHOWN = 10  # problems spelt out in an error
SYSTEM = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "lost+found",
}  # not a user's


class Item(NamedTuple):
    """One image: how messages name it, and how to get its pixels, uint8 [C, H, W]."""

    label: str
    load: Callable[[], NDArray[np.uint8]]


Classes = Mapping[str, Sequence[Item]]  # the images of each class, in the order of the pool


@dataclass(frozen=True)
class Source:
    """Images that were found on disk.

    Args:
        name: for messages, e.g. "Omniglot in A and B".
        fingerprint: changes when the images do, or how they are decoded; cheap to make.
        shape: [C, H, W] of every decoded image.
        images: their number; an upper bound where it is not known before they are read.
        pools: for each pool of the cache a function that lists its images; called only when they have to be decoded. It raises
            ValueError where it cannot.
        advice: what to do when images turn out to be damaged.
    """

    name: str
    fingerprint: str
    shape: tuple[int, int, int]
    images: int
    pools: Mapping[str, Callable[[], Classes]]
    advice: str


class File(NamedTuple):
    """A file, and what changes when its content does: size in bytes and time of the last change in nanoseconds."""

    path: str
    stamp: str


def unseen(name: str) -> bool:
    """Whether a file or folder is one that a user does not know of: hidden, or made by the system as `Thumbs.db`."""
    return name.startswith(".") or name.lower() in SYSTEM


def files_in(folder: str | Path, suffixes: Sequence[str]) -> list[File]:
    """The files of a folder with one of these suffixes (lower case), by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        chosen = [e for e in entries if e.name.lower().endswith(tuple(suffixes)) and not unseen(e.name)]
        return sorted(stamped(entry) for entry in chosen)


def folders_in(folder: str | Path) -> list[str]:
    """Paths of the folders in a folder, by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(e.path for e in entries if not unseen(e.name) and e.is_dir())


def folders_below(folder: str | Path, above: frozenset[tuple[int, int]] = frozenset()) -> list[str]:
    """A folder and all below it, also by links, each before those in it; hidden ones are left out, circles end."""
    status = os.stat(folder)
    if (itself := (status.st_dev, status.st_ino)) in above:  # a link that leads back
        return []
    below = (folders_below(path, above | {itself}) for path in folders_in(folder))
    return [os.fspath(folder), *chain(*below)]


def others_in(folders: Iterable[str | Path], suffixes: Sequence[str]) -> str:
    """The files of these folders that end in none of the suffixes, as "12 .gif, 1 .txt"; empty where there are none."""
    counts: Counter[str] = Counter()
    for folder in folders:
        with os.scandir(folder) as entries:
            names = [e.name.lower() for e in entries if not unseen(e.name) and e.is_file()]
        others = [name for name in names if not name.endswith(tuple(suffixes))]
        counts.update(os.path.splitext(name)[1] or "without an extension" for name in others)
    return some([f"{count} {ending}" for ending, count in counts.most_common()])


def classes_in(folder: str | Path, suffixes: Sequence[str]) -> dict[str, list[File]]:
    """The files with one of these suffixes in each folder of a folder, by name."""
    return {os.path.basename(path): files_in(path, suffixes) for path in folders_in(folder)}


def classes_below(folder: str | Path, suffixes: Sequence[str]) -> dict[str, list[File]]:
    """As `classes_in`, with the files of the folders in each class's folder."""
    found = {path: chain(*(files_in(below, suffixes) for below in folders_below(path))) for path in folders_in(folder)}
    return {os.path.basename(path): sorted(files) for path, files in found.items()}


def stamped(path: str | Path | os.DirEntry) -> File:
    """A file with its stamp; one that cannot be looked at, as a broken link, or is none, as a pipe, has the reason in its
    place."""
    try:
        status = path.stat() if isinstance(path, os.DirEntry) else os.stat(path)
    except OSError as error:
        return File(os.fspath(path), str(error.strerror))
    return File(os.fspath(path), irregular(status) or f"{status.st_size} {status.st_mtime_ns}")


def fingerprint(settings: str, root: str | Path, files: Iterable[File]) -> str:
    """One line that stands for these settings and files: their names below `root`, sizes and times of change."""
    start = len(os.path.join(root, ""))
    lines = [f"{file.path[start:]} {file.stamp}" for file in files]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return f"{settings}; {len(lines)} files, sha256 of names, sizes and times {digest}"


def report(heading: str, problems: Sequence[str], advice: str, shown: int = SHOWN) -> str:
    """A message of several lines: the heading, the first problems, how many more there are, and what to do."""
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "\n  - ".join([f"{heading}:", *problems[:shown], *more]) + f"\n{advice}"


def some(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names in one line, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
