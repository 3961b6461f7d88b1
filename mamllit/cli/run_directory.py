"""The directory of a run: `default_root_dir/run_name`; for the same name again `run_name_v2`, `run_name_v3` and so on.

A fit makes its directory anew, so that fits which begin at the same moment never share one, and holds it with a lock until it
ends. Only the first process does so: the others of a run write nothing and learn the checkpoints' folder from it. What looks
for a run takes the newest with a checkpoint.
"""

import errno
import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from lightning.pytorch.plugins.environments import SLURMEnvironment

from mamllit.runs import durable
from mamllit.runs.locks import lock

LOCK = ".in_use"
CHECKPOINTS = "checkpoints"
TRACEBACK = "traceback.txt"


def check_name(name: str) -> str:
    """`name` if it can be the directory of a run below the root; a name with "/" is a directory in directories.

    Raises:
        ValueError: where it would leave the root, or could be taken for another name.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"run_name is {name!r}; it must stay below default_root_dir: no '..', '.' or empty parts")
    if any(part.startswith((".", "~")) or part != part.strip() or not part.isprintable() or "\\" in part for part in parts):
        raise ValueError(
            f"run_name is {name!r}; no part of it may begin with '.' or '~', begin or end with a space, or have a backslash or "
            "control characters"
        )
    return name


def version_of(name: str) -> tuple[str, int | None]:
    """A name without its `_v<number>`, and the number: None where it has none."""
    base, mark, number = name.rpartition("_v")
    counts = bool(mark and base) and number.isascii() and number.isdecimal() and not number.startswith("0") and number != "1"
    return (base, int(number)) if counts else (name, None)


def versions(root: Path, name: str) -> dict[int, Path]:
    """The directories of a run's name, by version; a name that ends in `_v<number>` means that version alone."""
    folder, leaf = (root / name).parent, (root / name).name
    base, only = version_of(leaf)
    found: dict[int, Path] = {}
    try:
        inside = [entry.name for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return found
    for entry in inside:  # compared, not globbed: a name may hold * or [
        own, number = version_of(entry)
        if own == base and (only is None or number == only):
            found[number or 1] = folder / entry
    return found


def has_checkpoint(run: Path) -> bool:
    return any((run / CHECKPOINTS).glob("*.ckpt"))


def newest(root: Path, name: str) -> Path | None:
    """The newest run of a name that has a checkpoint; None where there is none."""
    found = versions(root, check_name(name))
    return next((found[number] for number in sorted(found, reverse=True) if has_checkpoint(found[number])), None)


def run_of(checkpoint: Path, root: Path, name: str) -> Path | None:
    """The one of the runs of a name that a checkpoint lies in; None for a file that lies elsewhere."""
    folder = checkpoint.absolute().parent
    if folder.name != CHECKPOINTS:
        return None
    return next((run for run in versions(root, check_name(name)).values() if os.path.samefile(run, folder.parent)), None)


class RunDirectory:
    """A run directory that only this fit may write to until the `with` block ends.

    One that this process has made goes again if the block ends with an error and `begun` returns False; where it returns True,
    the error's traceback is kept.
    """

    begun: Callable[[], bool]

    def __init__(self, path: Path, made: list[Path], lock: IO | None) -> None:
        self.path, self.made, self.begun = path, made, lambda: False
        self._lock = lock

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self.made and not self.begun():
            shutil.rmtree(self.path, ignore_errors=True)
            for parent in self.made[1:]:
                try:
                    parent.rmdir()
                except OSError:  # somebody else's run has come into it
                    break
        elif isinstance(error, Exception) and self.begun():
            durable.keep(self.path / TRACEBACK, "".join(traceback.format_exception(error)))
        if self._lock is not None:
            with suppress(OSError):  # on a disk that has become read-only it stays, and what went wrong is told
                (self.path / LOCK).unlink()
            self._lock.close()


def make(root: Path, name: str) -> RunDirectory:
    """A directory that was not there before: `name`, or the first free version after the last.

    Raises:
        ValueError: for a name that cannot be one, or that ends in `_v<number>`.
        OSError: where it cannot be made.
    """
    leaf, number = version_of(Path(check_name(name)).name)
    if number is not None:
        raise ValueError(f"run_name is {name!r}; mamllit appends _v{number} to later runs of the same name: use {leaf!r}")
    first = root / name
    version = max(versions(root, name), default=0) + 1
    above = _make_all(first.parent, first)
    while True:
        path = first if version == 1 else first.with_name(f"{leaf}_v{version}")
        try:
            path.mkdir()
        except FileExistsError:
            version += 1
            continue
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            return RunDirectory(path, [path, *above], _lock(path))
        except BlockingIOError:  # a job that begins where it finds nothing was quicker
            version += 1


def take(path: Path) -> RunDirectory:
    """A directory that is there, to go on in.

    Raises:
        BlockingIOError: while another process is training in it.
        OSError: where it cannot be written.
    """
    if problem := durable.refusal(path):
        raise _unwritable(path, problem)
    taken = RunDirectory(path, [], _lock(path))
    for folder in (path, path / CHECKPOINTS):
        durable.clear(folder)
    return taken


def take_or_make(root: Path, name: str) -> RunDirectory:
    """For a job that begins where there is no checkpoint: what it left when it was killed too early, or a new one."""
    found = versions(root, check_name(name))
    if found and (last := found[max(found)]).is_dir() and not last.is_symlink():
        try:
            return take(last)
        except BlockingIOError:
            pass
    return make(root, name)


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process of a run that writes, before Lightning knows; the variables are those that it reads."""
    if "RANK" in environment:  # torchrun
        return environment["RANK"] == "0"
    if "LOCAL_RANK" in environment:  # started by Lightning in the first process of each node
        return {environment.get(name, "0") for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK")} == {"0"}
    if SLURMEnvironment.detect():
        return environment.get("SLURM_PROCID", "0") == "0"
    return environment.get("NODE_RANK", environment.get("GROUP_RANK", "0")) == "0"


def _make_all(folder: Path, run: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were not there, the innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise _unwritable(run, os.strerror(errno.ENOTDIR)) from error
    except OSError as error:
        raise _unwritable(run, error) from error
    if problem := durable.refusal(folder):
        raise _unwritable(run, problem)
    return missing


def _unwritable(run: Path, problem: OSError | str) -> OSError:
    text = problem if isinstance(problem, str) else problem.strerror or str(problem)
    return OSError(
        f"the run directory {run} cannot be written ({text}): free some space, make it writable, or choose another with "
        "--trainer.default_root_dir"
    )


def _lock(path: Path) -> IO | None:
    """The lock of a run directory, released however the process ends; None on a disk that has no locks."""
    while True:
        file = durable.open_own(path / LOCK, "a", shared=True)
        try:
            locks = lock(file, across_machines=True)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                f"another process is training in {path}: wait for it or stop it; without --ckpt_path, `fit` starts a new run"
            ) from None
        if not locks:
            file.close()
            (path / LOCK).unlink(missing_ok=True)
            return None
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path / LOCK)):
                return file
        except FileNotFoundError:
            pass  # the process that held it has removed it meanwhile
        file.close()
