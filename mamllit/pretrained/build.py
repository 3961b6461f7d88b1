"""From the configuration in a checkpoint to the method: only classes that cannot do anything but compute.

A checkpoint may come from anywhere, and a class path in it names code to run with arguments of the file's choice. So by
default only networks and methods (`torch.nn.Module`) of `torch.nn` and of mamllit, and mamllit's objectives, are made.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mamllit
from mamllit.methods import Method
from mamllit.pretrained.files import Checkpoint, read

SAFE = ("mamllit", "torch.nn")
OBJECTIVES = "mamllit.objectives"  # plain classes; they take no arguments


def load(name_or_path: str | Path, trusted: Sequence[str] = ()) -> Method:
    """The method of a checkpoint, with its trained meta-parameters, on the CPU, ready for `adapt` and `predict`.

    Args:
        name_or_path: a name of `mamllit.pretrained.names()`, or the path of a file that `mamllit export` wrote.
        trusted: packages or modules of your own (e.g. "mynets") whose classes may be made too. Their code is then run with
            the arguments that stand in the file: name only what you would run.

    Raises:
        FileNotFoundError: for an unknown name or missing file; the near names are listed.
        ValueError: for a damaged file, class paths that are not trusted, or tensors that do not fit the model.
    """
    checkpoint, tensors = read(name_or_path)
    return rebuild(checkpoint, tensors, trusted)


def rebuild(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], trusted: Sequence[str] = ()) -> Method:
    """What `load` returns, from a checkpoint that was read."""
    made = build(checkpoint.model["method"], trusted)
    if not isinstance(made, Method):
        raise ValueError(f"the model of {checkpoint.name} is a {type(made).__name__}, which is no mamllit Method")
    fill(made, checkpoint, tensors)
    return made.eval()


def fill(method: Method, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors into a method that was made elsewhere, e.g. from a configuration file.

    Raises:
        ValueError: if names or shapes differ; all differences are listed.
    """
    own = method.state_dict()
    problems = [f"{name} is missing in the checkpoint" for name in own if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensors[name].shape)} in the checkpoint and {list(value.shape)} in the model"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"the checkpoint {checkpoint.name} does not fit the model: {'; '.join(problems)}")
    method.load_state_dict(dict(tensors))


def build(config: Any, trusted: Sequence[str] = ()) -> Any:
    """Objects from a configuration: a mapping with `class_path` (and `init_args`) becomes an instance, the rest is kept.

    Raises:
        ValueError: for class paths outside `SAFE` and `trusted` (all are listed, and nothing is imported), for what turns
            out not to be a class that may be made, or for arguments that a class does not take.
    """
    allowed = (*SAFE, *trusted)
    if refused := [path for path in class_paths(config) if not _inside(path, allowed)]:
        raise ValueError(
            f"the checkpoint names classes outside {', '.join(allowed)}: {', '.join(refused)}. Their code would be run; if "
            f"you trust it, say so: trusted={sorted({path.split('.')[0] for path in refused})} in Python, --trusted on the "
            "command line"
        )
    return _build(config, trusted)


def _build(config: Any, trusted: Sequence[str]) -> Any:
    if isinstance(config, Mapping) and "class_path" in config:
        arguments = {name: _build(value, trusted) for name, value in (config.get("init_args") or {}).items()}
        try:
            return _class(config["class_path"], trusted)(**arguments)
        except TypeError as error:
            raise ValueError(
                f"{config['class_path']} does not take the arguments in the checkpoint ({error}); it may have been made "
                f"with another version than this mamllit {mamllit.__version__}, torch {torch.__version__}"
            ) from error
    if isinstance(config, Mapping):
        return {name: _build(value, trusted) for name, value in config.items()}
    return [_build(value, trusted) for value in config] if isinstance(config, list) else config


def _class(path: str, trusted: Sequence[str]) -> type:
    """The class at a path that lies inside what is allowed; it must also have been defined there, not only imported."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the checkpoint needs the class {path}, which this installation does not have: {error}") from error
    home = getattr(found, "__module__", "")
    plain = _inside(home, (OBJECTIVES, *trusted))
    if not isinstance(found, type) or not (plain or (_inside(home, SAFE) and issubclass(found, nn.Module))):
        raise ValueError(f"{path} in the checkpoint is no network, method or objective; it is not made")
    return found


def class_paths(config: Any) -> Iterator[str]:
    """All class paths in a configuration."""
    if isinstance(config, Mapping):
        if "class_path" in config:
            yield str(config["class_path"])
        for value in config.values():
            yield from class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from class_paths(value)


def _inside(path: str, packages: Sequence[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)
