"""Rebuild a method from the configuration in a checkpoint, using only classes that do nothing but compute.

A checkpoint may come from anywhere, and a class path in it names code that runs with arguments of the file's choice. By
default only networks and methods (`torch.nn.Module`) of `torch.nn` and of mamllit, and mamllit's objectives, are built.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import mamllit
from mamllit.backbones.timm_net import filled_later
from mamllit.methods import Method
from mamllit.pretrained.files import Checkpoint, read

SAFE = ("mamllit", "torch.nn")
LEEWAY = 100_000  # numbers beyond those of the file: constants, step counts
CALLS = 200  # of torch functions, at most, that building a module may take per tensor of the file
FILLS = ("uniform_", "normal_", "fill_", "zero_", "copy_", "erfinv_", "clamp_", "mul_", "add_")
PLAIN = ("mamllit.objectives", "mamllit.rl")  # plain classes that only compute: objectives, worlds, distributions


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
    """What `load` returns, from a checkpoint that was read.

    A hostile configuration may ask for any amount of memory. So the model is first built on the meta device, where tensors take
    none, and no larger than the file; it is built for real once all names and shapes match.
    """
    config = checkpoint.model.get("method")
    try:
        _try_out(checkpoint, tensors, trusted)
    except _TooLarge as error:
        raise ValueError(f"the model of {checkpoint.name} is not built: {error}") from None
    except RecursionError:
        raise ValueError(f"the model of {checkpoint.name} is not built: its configuration is nested too deeply") from None
    except Exception as error:  # a class of the user's may need what the meta device does not have
        safe = all(_inside(path, SAFE) for path in class_paths(config))
        if safe and isinstance(error, RuntimeError):
            raise ValueError(f"the model of {checkpoint.name} cannot be built: {error}") from error
        if safe:
            raise
    with filled_later():
        made = _method(build(config, trusted), checkpoint)
    fill(made, checkpoint, tensors)
    return made.eval()


def _try_out(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], trusted: Sequence[str]) -> None:
    config = checkpoint.model.get("method")
    _check_numbers(config, sum(value.numel() for value in tensors.values()) + LEEWAY)
    with torch.device("meta"), _AsLargeAs(tensors), filled_later():
        made = build(config, trusted)
    _compare(_method(made, checkpoint), checkpoint, tensors)


def _method(made: Any, checkpoint: Checkpoint) -> Method:
    if not isinstance(made, Method):
        raise ValueError(f"the model of {checkpoint.name} is a {type(made).__name__}, which is not a mamllit Method")
    return made


class _TooLarge(Exception):
    """The configuration asks for more than the file can fill."""


def _check_numbers(config: Any, most: int, name: str = "") -> None:
    """Refuse a configuration with an integer that no model filling this file could need."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            _check_numbers(value, most, str(key))
    elif isinstance(config, list):
        for value in config:
            _check_numbers(value, most, name)
    elif isinstance(config, int) and abs(config) > most:
        raise _TooLarge(f"{name} is {config:,}; a model that fills this file has no number above {most:,}")


class _AsLargeAs(TorchFunctionMode):
    """Refuses to make a tensor, or so many tensors, that the file could never fill them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.numbers = 10 * sum(value.numel() for value in tensors.values()) + LEEWAY  # of one tensor
        self.left = CALLS * (len(tensors) + 10)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _TooLarge("its configuration creates many more tensors than the file holds")
        first = args[0] if args else (kwargs or {}).get("tensor")  # torch.nn.init names it
        if getattr(func, "__name__", "") in FILLS and isinstance(first, Tensor) and first.is_meta:
            return first  # nothing to fill; torch would load its compiler first
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.numel() > self.numbers:
            raise _TooLarge(f"its configuration creates a tensor {list(made.shape)}, but the file holds far fewer numbers")
        return made


def fill(method: Method, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors into a method that was made elsewhere, e.g. from a configuration file.

    Raises:
        ValueError: if names or shapes differ; all differences are listed.
    """
    _compare(method, checkpoint, tensors)
    method.load_state_dict(dict(tensors))


def _compare(method: Method, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    own = method.state_dict()
    problems = [f"{name} is missing from the checkpoint" for name in own if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensors[name].shape)} in the checkpoint and {list(value.shape)} in the model"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"the checkpoint {checkpoint.name} does not fit the model: {'; '.join(problems)}")


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
            f"you trust it, pass trusted={sorted({path.split('.')[0] for path in refused})} in Python or --trusted on the "
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
                f"with a version other than this mamllit {mamllit.__version__}, torch {torch.__version__}"
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
    plain = _inside(home, (*PLAIN, *trusted))
    if not isinstance(found, type) or not (plain or (_inside(home, SAFE) and issubclass(found, nn.Module))):
        raise ValueError(f"{path} in the checkpoint is not a network, method, objective or world; it is not built")
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
