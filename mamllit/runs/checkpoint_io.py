"""Checkpoints that are whole or not there, and the search for the newest whole one.

Lightning's own writing goes through the system's temporary folder, from which a checkpoint is copied, not renamed, where that
is another disk; and a write that fails ends the training. Here a failed one is said, and the training goes on.
"""

import io
import pickle
import warnings
import zipfile
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
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}
        self._last_step: int | None = None  # of last.ckpt on the disk, once this process has written it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write it; where that fails, warn and keep what is there.

        Raises:
            TypeError: for `storage_options`, which a local file has none of.
        """
        if "://" in str(path):  # a remote store has its own transactions
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if storage_options is not None:
            raise TypeError(f"storage_options is {storage_options!r}; a local checkpoint has none, leave it out")
        path = Path(path)
        try:
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            if path.name == "last.ckpt" and path.exists() and self._step(path) != checkpoint.get("global_step"):
                durable.link(path, path.with_name(PREVIOUS))
            durable.write(path, buffer.getvalue())
        except OSError as error:
            self.failed[str(path)] = error.strerror or str(error)
            kept = "the one before it is untouched" if path.exists() else "there is none yet"
            warnings.warn(
                f"cannot write the checkpoint {path} ({self.failed[str(path)]}); {kept}, and the training goes on. "
                "Make room or make the folder writable: the next checkpoint tries again",
                stacklevel=2,
            )
            return
        self.failed.pop(str(path), None)
        if path.name == "last.ckpt":
            self._last_step = checkpoint.get("global_step")

    def _step(self, path: Path) -> int | None:
        if self._last_step is None and (found := read(path)) is not None:
            self._last_step = found["global_step"]
        return self._last_step

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it; where that fails, it stays."""
        try:
            super().remove_checkpoint(path)
        except OSError as error:
            warnings.warn(f"cannot remove the checkpoint {path} ({error.strerror or error})", stacklevel=2)


def read(path: Path) -> dict[str, Any] | None:
    """The checkpoint, on the CPU; None where the file is cut off or altered (each part bears a checksum)."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        return torch.load(path, map_location="cpu", weights_only=False)
    except DAMAGE:
        return None


def newest(folder: Path, max_steps: int = -1) -> Path | None:
    """The checkpoint in `folder` to go on from: of the whole ones that with the most steps; None where there is none.

    Damaged ones are named in a warning. One that was written before the validation that ends a run of `max_steps` steps would
    end the run without it; so the one before it is taken.
    """
    found: list[tuple[int, bool, Path]] = []
    damaged: list[str] = []
    for path in sorted(folder.glob("*.ckpt")):
        checkpoint = read(path)
        if checkpoint is None:
            damaged.append(path.name)
        elif not (checkpoint.get("validation_due") and checkpoint["global_step"] >= max_steps > 0):
            found.append((checkpoint["global_step"], path.name == "last.ckpt", path))
    best = max(found, default=None)
    if damaged:
        instead = f"{best[2].name} of step {best[0]} is used" if best else "there is no other: the run begins anew"
        warnings.warn(f"in {folder}, {', '.join(damaged)} cannot be read, cut off or altered; {instead}", stacklevel=2)
    return best[2] if best else None
