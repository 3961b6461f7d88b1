"""The file of a trained checkpoint: tensors, and one metadata entry, "mamllit", with the configuration and the result as JSON.

Safetensors files hold no code, so reading one runs none. All metadata go into one entry, because safetensors does not keep the
order of several: the same run then gives the same bytes. A digest reveals a file in which a bit has changed.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mamllit.runs import durable

FOLDER = Path(__file__).parents[1] / "checkpoints"
SUFFIX = ".safetensors"
KEY = "mamllit"  # of the metadata entry
FORMAT = 2  # goes up when older code could not read what is written; 1 had no digest
LIMIT = 500_000  # bytes; the files are kept in the repository
LIGHTNING_WORDS = ("last", "best", "hpc", "registry")
DType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds besides the tensors.

    Args:
        name: e.g. "maml_omniglot_5way_1shot".
        model: the part `model:` of the run's config.yaml, defaults included.
        data: the part `data:`, without the folder that the images lay in.
        result: steps done and asked, seed, commit, and the measured `results` by evaluation set.
        stored_as: "float32" as trained, or "float16", rounded where it can hold the numbers; loading gives float32.
        format: the version of this layout.
    """

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    result: dict[str, Any]
    stored_as: DType = "float32"
    format: int = FORMAT

    @property
    def steps(self) -> int:
        """Inner steps whose value is the headline of the result (`report_step`)."""
        return int(self.model["report_step"])


def steps_before(result: Mapping[str, Any]) -> int:
    """Iterations that the weights had behind them when the fit of a result (`result.json`) began: 0 for untrained ones."""
    origin = (result.get("fit") or {}).get("started_from")
    return 0 if not origin else origin["steps_done"] + steps_before({"fit": origin})


def steps_done(result: Mapping[str, Any]) -> int:
    """All iterations that the weights of a result have behind them."""
    return steps_before(result) + result["steps_done"]


def names() -> list[str]:
    """Names of the checkpoints that come with mamllit."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def is_meant(text: str) -> bool:
    """Whether a `--ckpt_path` names such a file: it ends in `.safetensors`, or is a bare name Lightning does not reserve."""
    bare = re.fullmatch(r"\w+", text) is not None and text not in LIGHTNING_WORDS and not Path(text).exists()
    return text.endswith(SUFFIX) or bare


def find(name_or_path: str | Path) -> Path:
    """The file of a checkpoint that comes with mamllit, by name, or of any other, by path.

    A text that ends in `.safetensors` or has a folder in it is a path, anything else a name.

    Raises:
        FileNotFoundError: where there is none; it says which names there are, the nearest first.
    """
    text = str(name_or_path)
    is_path = text.endswith(SUFFIX) or len(Path(text).parts) > 1
    path = Path(text).expanduser() if is_path else FOLDER / f"{text}{SUFFIX}"
    if path.is_file():
        return path
    known = names()
    near = difflib.get_close_matches(Path(text).stem, known, n=3)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    what = f"no checkpoint file at {path}" if is_path else f"no checkpoint is named {text!r}"
    there = f"the names are: {', '.join(known)}" if known else "this copy of mamllit comes with none"
    raise FileNotFoundError(f"{what}{hint}; {there}. `mamllit export` makes a file of your own; give its path")


def opened(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file; `ValueError` where it is none, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} ({path.stat().st_size} bytes) cannot be read as safetensors: {error}") from error
    return metadata, stored


def read(name_or_path: str | Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """A checkpoint and its tensors, float16 as float32; nothing in the file is run.

    Raises:
        FileNotFoundError: see `find`.
        ValueError: for a file that is damaged, that `mamllit export` did not write, or that is of a later format.
    """
    path = find(name_or_path)
    metadata, stored = opened(path)
    if KEY not in metadata:
        raise ValueError(f"{path} has no metadata entry {KEY!r}: it was not written by `mamllit export`")
    try:
        entries = dict(json.loads(metadata[KEY]))
        if entries["format"] > FORMAT:
            raise ValueError(f"its format is {entries['format']}, and this mamllit reads up to {FORMAT}: install a newer one")
        written = entries.pop("digest", None)
        checkpoint = _checked(Checkpoint(**entries))
        same = written == digest(entries, stored)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata entry {KEY!r} cannot be used: {error}") from error
    if not same and (written is not None or checkpoint.format > 1):
        raise ValueError(f"{path} has changed since it was written: its digest differs; copy or export it again")
    return checkpoint, {name: value.float() if value.dtype == torch.float16 else value for name, value in stored.items()}


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    for field in ("model", "data", "result"):
        if not isinstance(getattr(checkpoint, field), dict):
            raise TypeError(f"{field} is {getattr(checkpoint, field)!r:.50}; it must be a mapping")
    return checkpoint


def digest(entries: Mapping[str, Any], stored: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a file holds: its entries but the digest, and every tensor's name, type, shape and bytes."""
    found = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name in sorted(stored):
        value = stored[name].contiguous()
        found.update(f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`; as it is where it has no fractions, or `dtype` cannot hold it: too large, or so small throughout
    that few digits would be left."""
    if not value.is_floating_point():
        return value
    rounded, exact = value.to(dtype), value.double()
    largest = exact.abs().max() if exact.numel() else exact.new_zeros(())
    holds = ((rounded.double() - exact).abs() <= torch.finfo(dtype).eps * largest).all()
    return rounded if holds else value


def write(path: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], limit: int = LIMIT) -> int:
    """Write a file, whole or not at all; returns its size in bytes.

    Raises:
        ValueError: for a file of more than `limit` bytes; nothing is written then.
    """
    dtype = getattr(torch, checkpoint.stored_as)
    stored = {name: _rounded(value.detach().cpu(), dtype).contiguous().clone() for name, value in tensors.items()}
    entries = json.loads(json.dumps(asdict(checkpoint)))  # as a reader finds them
    entries["digest"] = digest(entries, stored)
    content = save(stored, {KEY: json.dumps(entries, separators=(",", ":"))})
    if len(content) > limit:
        raise ValueError(
            f"{path.name} would have {len(content):,} bytes, more than the limit of {limit:,}; store it as float16 "
            "(--dtype float16: measure again from the file, the weights are rounded), or raise the limit (--limit)"
        )
    durable.write(path, content)
    return len(content)
