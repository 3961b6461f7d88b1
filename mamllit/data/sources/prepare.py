"""From a `Source` to pools in memory maps: a sound cache of this source, else every image decoded into a new one.

Decoding runs in threads (Pillow lets go of the interpreter while it works), each image goes straight to the file, and one
process at a time does it. Where no cache can be written, a small data set is kept in memory instead.
"""

import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from mamllit.data.pool import ClassPool
from mamllit.data.sources.cache import CacheWriter, load_cache
from mamllit.data.sources.source import Source, report
from mamllit.runs import durable
from mamllit.runs.locks import lock

CHUNK = 64  # images that a thread decodes and writes at once
IN_MEMORY = 2**29  # bytes of images that a process may keep where no cache can be written


class Sink(Protocol):
    """Where decoded images go; `CacheWriter` says what the two do."""

    def add(self, key: str, names: Sequence[str], counts: Sequence[int], shape: tuple[int, int, int]) -> None: ...

    def write(self, key: str, row: int, images: NDArray[np.uint8]) -> None: ...


def load_pools(source: Source, folder: Path, how: str = "free some space or make it writable") -> dict[str, ClassPool]:
    """The pools of `source`, as memory maps of the cache in `folder`, which is written where it is not there yet.

    Args:
        source: the images.
        folder: the cache.
        how: what the user can do where the cache cannot be written.

    Raises:
        ValueError: listing all images that cannot be read.
        OSError: if the cache cannot be written, and the images are too many to be kept in memory.
    """
    say_once(source.name)
    pools = load_cache(folder, source.fingerprint)
    if pools is not None:
        return pools
    need = source.images * int(np.prod(source.shape))
    try:
        with _one_at_a_time(folder) as waited:
            pools = load_cache(folder, source.fingerprint) if waited else None
            if pools is None:
                with CacheWriter(folder, source.fingerprint, need) as writer:
                    _decode(source, writer)
                    writer.commit()
                pools = load_cache(folder, source.fingerprint)
        if pools is None:
            raise OSError("another process has replaced it")
        return pools
    except OSError as error:
        problem = f"{source.name}: cannot write the cache {folder} ({error})"
        if need > IN_MEMORY:
            raise OSError(
                f"{problem}, and {need / 2**20:,.0f} MiB of images are too much to keep in memory instead: {how}"
            ) from error
        warnings.warn(
            f"{problem}; the images are kept in memory only and decoded again in every run. To avoid that, {how}",
            stacklevel=3,
        )
    memory = _Memory()
    _decode(source, memory)
    return memory.pools()


@cache
def say_once(line: str) -> None:
    """Log a line; the loaders run twice in a process, and nobody wants to read it twice."""
    rank_zero_info(line)


class _Memory:
    """A sink without a file."""

    def __init__(self) -> None:
        self._arrays: dict[str, tuple[NDArray[np.uint8], tuple[NDArray[np.int64], tuple[str, ...]]]] = {}

    def add(self, key: str, names: Sequence[str], counts: Sequence[int], shape: tuple[int, int, int]) -> None:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._arrays[key] = np.empty((int(offsets[-1]), *shape), np.uint8), (offsets, tuple(names))

    def write(self, key: str, row: int, images: NDArray[np.uint8]) -> None:
        self._arrays[key][0][row : row + len(images)] = images

    def pools(self) -> dict[str, ClassPool]:
        return {key: ClassPool(torch.from_numpy(images), *rest) for key, (images, rest) in self._arrays.items()}


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Holds the lock of this cache; True if another process had it. What a killed process left half-written is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with durable.open_own(folder.with_name(f"{folder.name}.lock"), "a", shared=True) as file:
        waited = False
        try:
            locks = lock(file)
        except BlockingIOError:
            say_once(f"waiting for another process to prepare {folder}")
            waited = locks = lock(file, wait=True)
        if not locks:  # a file system without them: several may work at once, and the first to end wins
            yield False
            return
        for left in folder.parent.glob(f"{folder.name}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield waited


def _decode(source: Source, sink: Sink) -> None:
    """All images of the source into the sink; ValueError naming those that cannot be used."""
    problems: list[str] = []
    for key, listing in source.pools.items():
        try:
            classes = listing()
        except OSError as error:
            raise ValueError(f"{source.name}: cannot be read ({error}). {source.advice}") from error
        sink.add(key, list(classes), [len(items) for items in classes.values()], source.shape)
        items = [*chain(*classes.values())]

        def work(start: int, key: str = key, items: list = items) -> list[str]:
            chosen, wrong = items[start : start + CHUNK], []
            block = np.empty((len(chosen), *source.shape), np.uint8)
            for i, item in enumerate(chosen):
                try:
                    block[i] = item.load()
                except Exception as error:  # zipfile and Pillow can raise nearly anything on a spoilt image
                    wrong.append(f"{item.label}: {_reason(error)}")
            if not wrong:
                sink.write(key, start, block)
            return wrong

        bar = tqdm(total=len(items), desc=f"decoding {key}", unit=" images", disable=None)
        with bar, ThreadPoolExecutor(threads()) as pool:
            try:
                for wrong in pool.map(work, range(0, len(items), CHUNK)):
                    problems += wrong
                    bar.update(min(CHUNK, len(items) - bar.n))
            except BaseException:  # a full disk, or Ctrl-C: what has not begun need not begin
                pool.shutdown(cancel_futures=True)
                raise
    if problems:
        heading = f"{source.name}: images that cannot be used ({len(problems)})"
        raise ValueError(report(heading, problems, source.advice))


def threads() -> int:
    """Threads that decode: two per core that this process may use, since each also waits for the disk and for the others."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return min(32, 2 * (len(affinity(0)) if affinity else os.cpu_count() or 1))


def _reason(error: BaseException) -> str:
    """The error without the path, which stands before it, and without the address of a buffer."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split(" <_io.")[0]
    plain = isinstance(error, OSError | ValueError | SyntaxError | RuntimeError | zipfile.BadZipFile) and text
    return text if plain else f"{type(error).__name__}: {text}".removesuffix(": ")
