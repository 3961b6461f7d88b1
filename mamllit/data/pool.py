"""ClassPool: all images of one split, grouped by class, and its cache on disk.

A pool is what an episode sampler draws from: one uint8 tensor, with the images of a class next to each other. The cache
keeps several pools (one per split, say) in one folder, an `.npy` per pool and a `meta.json`. The arrays are loaded as
copy-on-write memory maps, so that the processes of one machine share the pages and loading costs next to nothing.
Nothing here knows a particular data set.
"""

import errno
import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CACHE_FORMAT = 1
BLOCK = 2**20  # bytes read at once for a checksum
MAX_BLOCKS = 64  # larger files are checked in this many blocks, spread evenly
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a spoilt cache can raise


@dataclass(frozen=True, eq=False)
class ClassPool:
    """The images of one split by class.

    Args:
        images: uint8 [M, C, H, W], all images of class c contiguous.
        offsets: int64 [classes + 1]; class c owns `images[offsets[c]:offsets[c + 1]]`.
        names: one name per class, without repetition.

    Raises:
        ValueError: if the three do not fit together; all that is wrong is named at once.
    """

    images: Tensor
    offsets: NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        problems = []
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            problems.append(f"images must be uint8 [M, C, H, W], got {self.images.dtype} {list(self.images.shape)}")
        if self.offsets.dtype != np.int64 or self.offsets.shape != (len(self.names) + 1,):
            problems.append(
                f"offsets must be int64 [{len(self.names) + 1}] (classes + 1), "
                f"got {self.offsets.dtype} {list(self.offsets.shape)}"
            )
        elif self.offsets[0] != 0 or self.offsets[-1] != len(self.images) or (np.diff(self.offsets) < 1).any():
            problems.append(
                f"offsets must rise from 0 to the number of images ({len(self.images)}), every class holding at least "
                f"one; got {self.offsets[0]} to {self.offsets[-1]}, smallest class {np.diff(self.offsets).min(initial=0)}"
            )
        if len(set(self.names)) != len(self.names):
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            problems.append(f"class names must be distinct; repeated: {', '.join(repeated)}")
        if problems:
            raise ValueError("ClassPool: " + "; ".join(problems))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images per class, int64 [classes]."""
        return np.diff(self.offsets)

    def select(self, names: Sequence[str]) -> "ClassPool":
        """A new pool of these classes, in this order (the images are copied).

        Raises:
            ValueError: naming the classes that this pool does not hold.
        """
        index = {name: c for c, name in enumerate(self.names)}
        unknown = [name for name in names if name not in index]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ValueError(f"the pool of {self.num_classes} classes does not hold {', '.join(unknown[:5])}{more}")
        chosen = np.array([index[name] for name in names], dtype=np.int64)
        rows = np.concatenate([np.arange(self.offsets[c], self.offsets[c + 1]) for c in chosen])
        offsets = np.concatenate([[0], np.cumsum(self.counts[chosen])]).astype(np.int64)
        return ClassPool(self.images[torch.from_numpy(rows)], offsets, tuple(names))


def save_cache(folder: str | Path, pools: dict[str, ClassPool], fingerprint: str) -> None:
    """Write the pools to `folder`, all or nothing.

    Everything is written to a sibling folder that then takes the place of `folder` by renaming, so a reader sees the
    old cache, the new one, or none, and any number of processes may save at once. A sound cache with the same
    fingerprint that another process put there meanwhile is left as it is.

    Args:
        folder: where the cache will lie; its parents are made.
        pools: pool by key; a key is also a file name.
        fingerprint: what the pools were made from; `load_cache` gives them back for the same one only.

    Raises:
        OSError: if the folder cannot be written, or a file bears its name; nothing is left behind then.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
    fresh.mkdir()
    try:
        entries = {}
        for key, pool in pools.items():
            with (fresh / f"{key}.npy").open("w+b") as file:
                np.lib.format.write_array(file, pool.images.contiguous().numpy(), version=(1, 0), allow_pickle=False)
                _flush(file)
                entries[key] = {
                    "names": list(pool.names),
                    "offsets": pool.offsets.tolist(),
                    "shape": list(pool.images.shape),
                    "bytes": os.fstat(file.fileno()).st_size,
                    "checksum": _checksum(file),
                }
        with (fresh / "meta.json").open("wb") as file:
            meta = {"format": CACHE_FORMAT, "fingerprint": fingerprint, "pools": entries}
            file.write(json.dumps(meta).encode())
            _flush(file)
        _put_in_place(fresh, folder, fingerprint)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_cache(folder: str | Path, fingerprint: str | None) -> dict[str, ClassPool] | None:
    """The pools that `save_cache` wrote to `folder`, as memory maps.

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
        except FileNotFoundError as error:
            if not folder.exists():
                return None
            problem = f"{Path(error.filename).name} is missing"
        except DAMAGE as error:
            problem = f"{type(error).__name__}: {error}"
    warnings.warn(f"the cache {folder} is damaged and will not be used ({problem})", stacklevel=2)
    return None


def _read(folder: Path, fingerprint: str | None) -> dict[str, ClassPool] | None:
    """`load_cache` that raises where the cache is damaged or absent."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if meta["format"] != CACHE_FORMAT or fingerprint not in (None, meta["fingerprint"]):
        return None
    pools = {}
    for key, entry in meta["pools"].items():
        with (folder / f"{key}.npy").open("rb") as file:  # opened once, lest another save comes between check and use
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                raise ValueError(f"{key}.npy has {size} bytes, expected {entry['bytes']}")
            if _checksum(file) != entry["checksum"]:
                raise ValueError(f"{key}.npy does not match its checksum")
            file.seek(0)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if list(shape) != entry["shape"]:
                raise ValueError(f"{key}.npy has shape {list(shape)}, expected {entry['shape']}")
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
            pass  # damaged, or moved away under our eyes
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
