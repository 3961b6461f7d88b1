"""The method of an experiment's YAML, with the settings there, as `mamllit fit` runs it: compiled where it would be."""

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.engine.compiling import should_compile
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import Method
from mamllit.pretrained.build import build as make
from suite.problems import Problem


def method_of(document: Mapping[str, Any]) -> Method:
    """The method of a YAML, with seeded weights. (There a class without arguments is a bare path; `make` wants a mapping.)"""
    settings = document["model"]["init_args"]["method"]
    given = settings["init_args"].items()
    arguments = {name: {"class_path": value} if isinstance(value, str) and "." in value else value for name, value in given}
    torch.manual_seed(0)
    method: Method = make({"class_path": settings["class_path"], "init_args": arguments})
    return method


class Cell:
    """A bare loop around the method's step, the YAML's optimiser included; the meta-batch is the row's."""

    def __init__(self, path: Path, dtype: torch.dtype, device: str) -> None:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        method = method_of(document).to(device, dtype)
        compiled = method.vectorised and should_compile("auto", document["trainer"]["max_steps"], torch.device(device))
        self.meta_gradient = MetaGradient(method, compiled=compiled)
        self.trained = [value for value in method.parameters() if value.requires_grad]
        optimizer = document["model"]["init_args"]["optimizer"]
        self.optimizer = pkgutil.resolve_name(optimizer["class_path"])(self.trained, **optimizer["init_args"])

    def prepare(self, episodes: Episode) -> Episode:
        return episodes

    def gradient(self, batch: Episode) -> dict[str, Tensor]:
        return self.meta_gradient(batch).gradient

    def step(self, batch: Episode) -> None:
        for parameter, value in zip(self.trained, self.gradient(batch).values(), strict=True):
            parameter.grad = value
        self.optimizer.step()


def build(name: str, row: Problem, dtype: torch.dtype, device: str) -> Cell:
    return Cell(Path(name), dtype, device)
