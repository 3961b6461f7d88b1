"""Checkpoints that are complete or absent, and the search for the newest complete one.

Lightning's own writing goes through the system's temporary folder, from which a checkpoint is copied, not renamed, where that
is another disk; and a write that fails ends the training. Here a failed write is a warning, and the training goes on.

A checkpoint may come from anybody, and a pickle can run code. So each is loaded as tensors and plain values only, from the
local disk only; classes may be named in it where the user trusts their package.
"""

import importlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mamllit.runs import durable

PREVIOUS = "previous.ckpt"
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and renames it when it is on the disk.

    The `last.ckpt` that is replaced by one of a later step is kept as `previous.ckpt`. `failed` says why the last write of a
    file failed, by its path; it is empty when all have been written.

    Args:
        trusted: see `load`.
    """

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}
        self.trusted = tuple(trusted)
        self._steps: dict[Path, int | None] = {}  # of each last.ckpt on the disk, once this process has written it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write it; if that fails, warn and keep what is there.

        Raises:
            TypeError: for `storage_options`, which local files do not take.
        """
        if "://" in str(path):  # a remote store has its own transactions
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if storage_options is not None:
            raise TypeError(f"storage_options is {storage_options!r}; a local checkpoint takes none: leave it out")
        path = Path(path)
        try:
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            if path.name == "last.ckpt" and path.exists() and self._step(path) != checkpoint.get("global_step"):
                durable.link(path, path.with_name(PREVIOUS))
            durable.write(path, buffer.getvalue())
        except OSError as error:
            self.failed[str(path)] = error.strerror or str(error)
            kept = "the previous one is untouched" if path.exists() else "there is none yet"
            warnings.warn(
                f"cannot write the checkpoint {path} ({self.failed[str(path)]}); {kept}, and training continues. "
                "Free some space or make the folder writable: the next checkpoint tries again",
                stacklevel=2,
            )
            return
        self.failed.pop(str(path), None)
        if path.name == "last.ckpt":
            self._steps[path] = checkpoint.get("global_step")

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint, whatever Lightning says of `weights_only`; see `load`.

        Raises:
            ForeignCode: see `load`.
            ValueError: for a file that is cut off, altered, or no checkpoint of a run.
        """
        try:
            found = load(Path(path), self.trusted, map_location)
        except ForeignCode:
            raise
        except DAMAGE as error:
            raise ValueError(f"{path} cannot be read as a checkpoint; it may be cut off or something else ({error})") from error
        if not isinstance(found, dict) or not {"state_dict", "pytorch-lightning_version"} <= found.keys():
            raise ValueError(f"{path} is no checkpoint of a run of `mamllit fit`: it lacks what Lightning writes into one")
        return found

    def _step(self, path: Path) -> int | None:
        if path not in self._steps and (found := read(path)) is not None:
            self._steps[path] = found["global_step"]
        return self._steps.get(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it; where that fails, it stays."""
        try:
            super().remove_checkpoint(path)
        except OSError as error:
            warnings.warn(f"cannot remove the checkpoint {path} ({error.strerror or error})", stacklevel=2)


class ForeignCode(ValueError):
    """A checkpoint names classes or functions, whose code would be run by loading it."""


def load(path: Path, trusted: Sequence[str] = (), map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's tensors and plain values; nothing in it is run.

    Args:
        path: a file.
        trusted: packages of the user's whose classes may be made, e.g. for a callback that keeps one in its state.
        map_location: where the tensors go.

    Raises:
        ForeignCode: where it names something else; the names are listed.
        OSError, RuntimeError, ...: see `DAMAGE`.
    """
    named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if refused := [name for name in named if not name.startswith(tuple(f"{package}." for package in trusted))]:
        raise ForeignCode(
            f"{path} names {', '.join(refused)}, whose code would be run; it is not loaded. A mamllit checkpoint holds "
            "tensors and plain values; if it is a class of your own, trust its package with --trusted"
        )
    with torch.serialization.safe_globals([_class(name, path) for name in named]):
        return torch.load(path, map_location=map_location, weights_only=True)


def _class(name: str, path: Path) -> type:
    module, _, own = name.rpartition(".")
    found = getattr(importlib.import_module(module), own, None)
    if not isinstance(found, type) or found.__module__.split(".")[0] != module.split(".")[0]:
        raise ForeignCode(f"{path} names {name}, which is not a class of {module}; it is not loaded")
    return found


def read(path: Path, trusted: Sequence[str] = ()) -> dict[str, Any] | None:
    """The checkpoint, on the CPU; None where the file is cut off, altered (each part has a checksum), or not of a run.

    Raises:
        ForeignCode: see `load`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())  # PyTorch packs nothing
            if packed or archive.testzip() is not None:
                return None
        found = load(path, trusted)
    except ForeignCode:
        raise
    except DAMAGE:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("global_step"), int) else None


def newest(folder: Path, max_steps: int = -1, trusted: Sequence[str] = ()) -> Path | None:
    """The checkpoint in `folder` to go on from: the complete one with the most steps; None where there is none.

    Damaged ones, and those that would run code, are named in a warning. One that was written before the validation that ends a
    run of `max_steps` steps would end the run without it; so the one before it is taken.
    """
    found: list[tuple[int, bool, Path]] = []
    damaged: list[str] = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            checkpoint = read(path, trusted)
        except ForeignCode as error:
            warnings.warn(f"{error}: skipped", stacklevel=2)
            continue
        if checkpoint is None:
            damaged.append(path.name)
        elif not (checkpoint.get("validation_due") and checkpoint["global_step"] >= max_steps > 0):
            found.append((checkpoint["global_step"], path.name == "last.ckpt", path))
    best = max(found, default=None)
    if damaged:
        instead = f"using {best[2].name} of step {best[0]}" if best else "there is no other"
        warnings.warn(f"in {folder}, {', '.join(damaged)} cannot be read (truncated or altered); {instead}", stacklevel=2)
    return best[2] if best else None
