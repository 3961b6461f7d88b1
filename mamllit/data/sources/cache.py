"""The cache of decoded images: several `ClassPool`s in one folder, an `.npy` each and a `meta.json`.

The arrays are loaded as copy-on-write memory maps, so that the processes of one machine share the pages and loading costs
next to nothing. They are written image by image as these are decoded, never held in memory, and take the cache's name when
they are complete. Nothing here depends on a particular data set.
"""

import errno
import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray

from mamllit.data.pool import ClassPool
from mamllit.data.sources.bounded import open_file, read_bytes

CACHE_FORMAT = 1
BLOCK = 2**20  # bytes read at once for a checksum
META = 2**28  # bytes of a cache's description; 100,000 classes take 3 million
MAX_BLOCKS = 64  # larger files are checked in this many blocks, spread evenly
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a spoilt cache can raise


class CacheWriter:
    """Writes a cache to `folder`, all or nothing; a context manager.

    Everything goes to a sibling folder that `commit` puts in the place of `folder` by renaming, so a reader sees the old
    cache, the new one, or none, and any number of processes may write at once. A sound cache with the same fingerprint that
    another process put there meanwhile is left as it is. Leaving the context without `commit` leaves nothing behind.

    Args:
        folder: where the cache will lie; its parents are made.
        fingerprint: what the pools are made from; `load_cache` gives them back for the same one only.
        need: bytes that will be written; more than the disk has free is refused at once.

    Raises:
        OSError: here, or from any method, if the disk is full, the folder cannot be written, or a file bears its name.
    """

    def __init__(self, folder: str | Path, fingerprint: str, need: int = 0) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.parent).free
        if free < need:
            text = f"{need / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free"
            raise OSError(errno.ENOSPC, text, str(self.folder.parent))
        self._fresh = self.folder.with_name(f"{self.folder.name}.tmp-{uuid.uuid4().hex}")
        self._fresh.mkdir()
        self._files: dict[str, BinaryIO] = {}
        self._start: dict[str, int] = {}  # where in its file a pool's first image begins
        self._entries: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._fresh, ignore_errors=True)

    def add(self, key: str, names: Sequence[str], counts: Sequence[int], shape: tuple[int, int, int]) -> None:
        """Begin the pool `key` (also a file name): its classes, the images of each, and an image's [C, H, W]."""
        offsets = [0, *np.cumsum(counts).tolist()]
        whole = (offsets[-1], *shape)
        file = self._files[key] = (self._fresh / f"{key}.npy").open("w+b")
        header = {"descr": "|u1", "fortran_order": False, "shape": whole}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        self._start[key] = file.tell()
        os.truncate(file.fileno(), self._start[key] + int(np.prod(whole)))
        self._entries[key] = {"names": list(names), "offsets": offsets, "shape": list(whole)}

    def write(self, key: str, row: int, images: NDArray[np.uint8]) -> None:
        """Put images [n, C, H, W] at the rows `row` to `row + n` of a pool; threads may do so at once."""
        data = memoryview(np.ascontiguousarray(images).data).cast("B")
        at = self._start[key] + row * images[0].size
        while data:  # not through a memory map: there, a disk that fills up kills the process
            done = os.pwrite(self._files[key].fileno(), data, at)
            data, at = data[done:], at + done

    def commit(self) -> None:
        """Make sure that all has reached the disk, and put the cache in place."""
        for key, file in self._files.items():
            _flush(file)
            self._entries[key] |= {"bytes": os.fstat(file.fileno()).st_size, "checksum": _checksum(file)}
        with (self._fresh / "meta.json").open("wb") as file:
            meta = {"format": CACHE_FORMAT, "fingerprint": self.fingerprint, "pools": self._entries}
            file.write(json.dumps(meta).encode())
            _flush(file)
        _put_in_place(self._fresh, self.folder, self.fingerprint)


def load_cache(folder: str | Path, fingerprint: str | None) -> dict[str, ClassPool] | None:
    """The pools that a `CacheWriter` wrote to `folder`, as memory maps.

    Args:
        folder: the cache folder.
        fingerprint: the one the cache must bear; None takes any.

    Returns:
        pool by key; None where there is no cache, or one of another fingerprint or format, or a damaged one (truncated
        or altered array, unreadable json), which is also warned about. The caller then builds the pools anew.
    """
    folder = Path(folder)
    problem = ""
    for _ in range(2):  # a second look, for the case that another process was just replacing the cache
        try:
            return _read(folder, fingerprint)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not folder.exists():
                return None
            problem = f"{Path(error.filename).name} is missing" if folder.is_dir() else "it is a file, not a folder"
        except DAMAGE as error:
            problem = f"{type(error).__name__}: {error}"
    warnings.warn(f"the cache {folder} is damaged and will not be used ({problem})", stacklevel=2)
    return None


def _read(folder: Path, fingerprint: str | None) -> dict[str, ClassPool] | None:
    """`load_cache` that raises where the cache is damaged or absent."""
    meta: dict[str, Any] = json.loads(read_bytes(folder / "meta.json", META))
    if meta["format"] != CACHE_FORMAT or fingerprint not in (None, meta["fingerprint"]):
        return None
    pools = {}
    for key, entry in meta["pools"].items():
        if os.path.basename(key) != key:
            raise ValueError(f"a pool is named {key[:60]!r}, which is outside the cache")
        with open_file(folder / f"{key}.npy") as file:  # opened once, lest another process comes between check and use
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                raise ValueError(f"{key}.npy has {size} bytes, expected {entry['bytes']}")
            if _checksum(file) != entry["checksum"]:
                raise ValueError(f"{key}.npy does not match its checksum")
            file.seek(0)
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if list(shape) != entry["shape"]:
                raise ValueError(f"{key}.npy has shape {list(shape)}, expected {entry['shape']}")
            if dtype != np.uint8 or fortran:
                raise ValueError(f"{key}.npy holds {dtype}{' in column order' * fortran}, expected uint8 in row order")
            array = np.memmap(file, dtype, "c", file.tell(), shape)
        pools[key] = ClassPool(torch.from_numpy(array), np.array(entry["offsets"], np.int64), tuple(entry["names"]))
    return pools


def _put_in_place(fresh: Path, folder: Path, fingerprint: str) -> None:
    """Rename `fresh` to `folder`. A folder cannot replace a filled one, so an outdated one is moved aside first."""
    for _ in range(100):
        try:
            os.replace(fresh, folder)
            return
        except OSError as error:
            in_the_way = folder.is_dir() or error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not in_the_way:
                raise
        try:
            if _read(folder, fingerprint) is not None:
                return
        except DAMAGE:
            pass  # damaged, or just moved away
        old = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
        try:
            os.replace(folder, old)
        except FileNotFoundError:
            continue  # another process moved it first
        shutil.rmtree(old, ignore_errors=True)
    raise OSError(f"could not put the cache in place at {folder}: other processes kept replacing it")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _checksum(file: BinaryIO) -> int:
    """CRC-32 of the file: of the whole up to 64 MiB, above that of 64 evenly spread blocks and the last one."""
    size = os.fstat(file.fileno()).st_size
    starts = [*range(0, size, max(BLOCK, size // MAX_BLOCKS)), max(0, size - BLOCK)]
    value = 0
    for start in starts:
        file.seek(start)
        value = zlib.crc32(file.read(BLOCK), value)
    return value
