"""Starts a training from trained weights: a published checkpoint's, or those of another run that fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mamllit import pretrained
from mamllit.data.images import weights_meet
from mamllit.pretrained.build import fill
from mamllit.systems.episodic import EpisodicSystem


class StartFrom(L.Callback):
    """Fills the method before the first step; a run that is resumed keeps its own weights, and remembers where it began.

    Args:
        checkpoint: a name of `mamllit.pretrained.names()` or the path of a file that `mamllit export` wrote, all of whose
            tensors the method must have (what the file lacks, such as a head, stays as it was); or the directory of a run (its
            best checkpoint, else its last) or a `.ckpt` file, from which all tensors that fit are taken. None: untrained.

    `origin` then says what the run started from: name, iterations, seed, and its own origin, if any.

    Raises:
        FileNotFoundError: for an unknown name or missing file.
        ValueError: at the start of the fit, where the checkpoint does not fit the method, or nothing of it.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self.run_file = None if checkpoint is None else find_in_run(checkpoint)
        self.file = None if checkpoint is None or self.run_file is not None else pretrained.find(checkpoint)
        self.origin: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"origin": self.origin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.origin = state_dict["origin"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            return
        if self.run_file is not None:
            saved = torch.load(self.run_file, map_location="cpu", weights_only=True, mmap=True)
            weights_meet(getattr(trainer, "datamodule", None), saved, str(self.run_file))
            said = take_what_fits(pl_module, saved["state_dict"], self.run_file)
            if trainer.is_global_zero:
                print(said)
            self.origin = {"name": str(self.run_file), "steps_done": saved["global_step"], "seed": None}
        if self.file is not None:
            assert isinstance(pl_module, EpisodicSystem)
            checkpoint, tensors = pretrained.read(self.file)
            weights_meet(getattr(trainer, "datamodule", None), checkpoint.data, checkpoint.name)
            left = {name: value for name, value in pl_module.method.state_dict().items() if name not in tensors}
            if left and trainer.is_global_zero:
                print(f"starts from {checkpoint.name}; not in the file, and not loaded: {_listed(left)}")
            fill(pl_module.method, checkpoint, {**tensors, **left})
            earlier = (checkpoint.result.get("fit") or {}).get("started_from")
            self.origin = {
                "name": checkpoint.name,
                "steps_done": checkpoint.result["steps_done"],
                "seed": checkpoint.result["seed"],
                **({"started_from": earlier} if earlier else {}),
            }


def find_in_run(asked: str) -> Path | None:
    """The checkpoint of a run that `asked` means: a `.ckpt` file, or in a run's directory the best, else the last.

    None where it means neither. Raises `FileNotFoundError` where it is not there.
    """
    path = Path(asked).expanduser()
    if len(path.parts) > 1 and path.suffix == "" and not path.exists():
        raise FileNotFoundError(
            f"init_from is {asked!r}, but there is no such run; train it first (the experiment file's header says how), "
            "or name another with --init_from"
        )
    tried = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")] if path.is_dir() else [path]
    if tried == [path] and path.suffix != ".ckpt":
        return None
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"init_from is {asked!r}, but there is no {' and no '.join(map(str, tried))}; give a run directory or a "
            ".ckpt file from one"
        )
    return found


def take_what_fits(module: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> str:
    """Copy into `module` the `tensors` that it has too, by name and shape; says what was taken and what was left.

    Raises:
        ValueError: where nothing fits.
    """
    own = module.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    left, unused = ([name for name in names if name not in fitting] for names in (own, tensors))
    if not fitting:
        raise ValueError(
            f"no tensor in {file} fits: it has {_shapes(tensors)}, and the model needs {_shapes(own)}; use a run with the "
            "same backbone"
        )
    module.load_state_dict(fitting, strict=False)
    said = [f"starts from {file}: loaded {len(fitting)} of the model's {len(own)} tensors, {_listed(fitting)}"]
    said += [f"not loaded: {_listed(left)}"] if left else []
    said += [f"not used from the file: {_listed(unused)}"] if unused else []
    return "; ".join(said)


def _shapes(tensors: Mapping[str, Tensor], shown: int = 4) -> str:
    first = [f"{name} {list(value.shape)}" for name, value in list(tensors.items())[:shown]]
    return ", ".join(first) + (f" and {len(tensors) - shown} more" if len(tensors) > shown else "")


def _listed(names: Any, shown: int = 10) -> str:
    words = list(names)
    return ", ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")
