"""Features of a folder's images, kept on the disk: a folder is embedded once.

One safetensors file per folder and network, in the hidden folder `.mamllit-cache` beside the images: a tensor [n, D], read as a
memory map, and which row belongs to which file. A row counts as long as its file has the name, size and time of change that it
had, and the network is the same; a file that is new or has changed is embedded, the others are not. The file is replaced as a
whole, so that a reader sees the old one or the new one, and any number of processes may write at once.
"""

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mamllit.data.sources.source import stamped
from mamllit.runs import durable

FOLDER = ".mamllit-cache"
KEY, TENSOR = "mamllit", "features"
FORMAT = 1
SAVED_EVERY = 2_000  # new images: a process that is ended has not computed more than so many in vain
Progress = Callable[[int], object]  # told how many images more are done


class FeatureCache:
    """The features of images in one folder, by one network.

    Args:
        root: the folder that the images lie in, at any depth.
        network: what the features depend on beside the image; see `mamllit.inference.features`.
        folder: of the cache; by default `.mamllit-cache` in `root`.

    Attributes:
        problem: why nothing could be kept; None where it could.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from mamllit.inference.feature_cache import FeatureCache
    >>> root = Path(tempfile.mkdtemp())
    >>> _ = (root / "a.png").write_bytes(b"...")
    >>> computed = lambda files: torch.ones(len(files), 4)
    >>> FeatureCache(root, "a network").get([root / "a.png"], computed).shape
    torch.Size([1, 4])
    >>> FeatureCache(root, "a network").get([root / "a.png"], lambda files: 1 / 0)  # not computed again
    tensor([[1., 1., 1., 1.]])
    """

    def __init__(self, root: str | Path, network: str, folder: str | Path | None = None) -> None:
        self.root, self.network = Path(root).expanduser().absolute(), network
        place = self.root / FOLDER if folder is None else Path(folder).expanduser()
        name = hashlib.sha256(f"{network}\0{'' if folder is None else os.fspath(self.root)}".encode()).hexdigest()[:16]
        self.path = place / f"features-{name}.safetensors"
        self.problem: str | None = None

    def get(self, files: Sequence[Path], compute: Callable[[Sequence[Path]], Tensor]) -> Tensor:
        """Features [n, D] of `files`; `compute` gives those [m, D] of the files that are not in the cache.

        Raises:
            whatever `compute` raises; what was computed before is kept.
        """
        keys = [self._key(file) for file in files]
        rows, kept = self._read()
        new = list({key: file for file, key in zip(files, keys, strict=True) if key not in rows}.values())
        if not new:
            index = [rows[key] for key in keys]
            return kept if index == list(range(len(kept))) else kept[index]
        for start in range(0, len(new), SAVED_EVERY):
            part = new[start : start + SAVED_EVERY]
            found = compute(part)
            wanted = [key for key in dict.fromkeys(keys) if key in rows]
            kept = torch.cat([kept[[rows[key] for key in wanted]], found]) if wanted else found
            rows = {key: i for i, key in enumerate([*wanted, *map(self._key, part)])}
            self._write(rows, kept)
        return kept[[rows[key] for key in keys]]

    def _key(self, file: Path) -> str:
        return f"{os.path.relpath(file, self.root)} {stamped(file).stamp}"

    def _read(self) -> tuple[dict[str, int], Tensor]:
        """Row by file, and the rows; nothing where there is no cache, or a damaged one."""
        nothing: tuple[dict[str, int], Tensor] = {}, torch.empty(0, 0)
        if not self.path.exists():
            return nothing
        try:
            with safe_open(self.path, framework="pt") as file:
                entries, features = json.loads((file.metadata() or {})[KEY]), file.get_tensor(TENSOR)
            if entries["format"] != FORMAT or entries["network"] != self.network:
                return nothing
            if len(entries["files"]) != len(features) or entries["checksum"] != _checksum(features):
                raise ValueError("its checksum differs")
            return {key: i for i, key in enumerate(entries["files"])}, features
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"the features in {self.path} are damaged and are computed again ({error})", stacklevel=2)
            return nothing

    def _write(self, rows: dict[str, int], features: Tensor) -> None:
        entries = {"format": FORMAT, "network": self.network, "checksum": _checksum(features), "files": list(rows)}
        try:
            durable.write(self.path, save({TENSOR: features.contiguous()}, {KEY: json.dumps(entries)}))
        except OSError as error:
            reason = error.strerror or str(error)
            self.problem = f"the features are not kept: {self.path.parent} cannot be written ({reason}); name a --cache_dir"


def _checksum(features: Tensor) -> int:
    return zlib.crc32(features.contiguous().numpy().tobytes())
