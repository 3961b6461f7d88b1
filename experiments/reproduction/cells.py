"""The cells of the tables. Each is one YAML file, which holds all there is to know of it, the published numbers included."""

import difflib
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mamllit import pretrained

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it: ten times as fast

Numbers = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Cell:
    """One YAML of a table: `name` "maml/omniglot_5way_1shot", of the `table` "omniglot", its `path` as it is passed on."""

    name: str
    table: str
    path: Path
    document: Mapping[str, Any] = field(repr=False)
    start: "Cell | None" = None  # with whose weights its training begins

    @property
    def key(self) -> str:
        """The name of the cell's checkpoint that comes with mamllit."""
        return self.name.replace("/", "_")

    @property
    def max_steps(self) -> int:
        """Length of the paper's run."""
        return self.document["trainer"]["max_steps"]

    @property
    def val_check_interval(self) -> int:
        return self.document["trainer"]["val_check_interval"]

    @property
    def run_root(self) -> Path:
        """The folder of its runs, one below it per seed."""
        return Path(self.document["trainer"]["default_root_dir"])

    @property
    def report_step(self) -> int:
        return self.document["model"]["init_args"]["report_step"]

    @property
    def published(self) -> Numbers:
        """Evaluation set -> inner steps -> the paper's value."""
        return (self.document.get("results") or {}).get("published") or {}

    @property
    def published_ci95(self) -> Numbers:
        return (self.document.get("results") or {}).get("published_ci95") or {}

    @cached_property
    def inner_steps(self) -> list[int]:
        """After how many inner steps a value goes into the table: those that the paper gives, else `report_step`."""
        return sorted({steps for values in self.published.values() for steps in values}) or [self.report_step]

    def data_problem(self, root: str | None) -> str | None:
        """Prepares the data, once and for all; what is wrong where that fails, with the command that gets them."""
        arguments = dict(self.document["data"].get("init_args") or {})
        module, _, name = self.document["data"]["class_path"].rpartition(".")
        if root is not None:
            arguments["root"] = root
        try:
            getattr(importlib.import_module(module), name)(**arguments).prepare_data()
        except FileNotFoundError as error:
            download = f"mamllit fit -c {self.path} --data.root {arguments.get('root')} --data.download true"
            return f"its data are absent: {error}\n    The command that gets them: {download}"
        except (OSError, ValueError, RuntimeError) as error:
            return f"its data cannot be used: {error}"
        return None


def find_cells(experiments: Path, table: str, patterns: Sequence[str] = (), recipe: bool = False) -> list[Cell]:
    """The cells below `experiments` of a table (or "all"), those that one of the shell `patterns` matches where there are any.

    With `recipe`, those of `experiments/recipes/`, which depart from the papers on purpose; else the papers' own.

    A pattern may leave out the folder: "omniglot_20way*" or "maml/omniglot_20way*".

    Raises:
        ValueError: for a table that has no cell, or a pattern that matches none; the near names are given.
    """
    documents = {path: yaml.load(path.read_text(), LOADER) for path in sorted(experiments.rglob("*.yaml"))}
    every = []
    for path, document in documents.items():
        match = re.match(r"(.+?)_\d", path.stem)
        system = (document.get("model") or {}).get("class_path")  # a sweep has no model; streams and policies no cells here
        name = str(path.relative_to(experiments).with_suffix(""))
        if match and system == "mamllit.systems.MetaLearner" and name.startswith("recipes/") == recipe:
            start = _start(document, documents, match[1], experiments)
            every.append(Cell(name, match[1], _relative(path), document, start))
    cells = [cell for cell in every if table in (cell.table, "all")]
    if not cells:
        raise ValueError(f"no table is named {table!r}; there are: {', '.join(sorted({c.table for c in every}))}, all")

    def matches(cell: Cell, pattern: str) -> bool:
        return fnmatchcase(cell.name, pattern) or fnmatchcase(cell.path.stem, pattern)

    for pattern in patterns:
        if not any(matches(cell, pattern) for cell in cells):
            names = [cell.path.stem for cell in cells]
            near = difflib.get_close_matches(pattern.rsplit("/", 1)[-1], names, n=3) or names
            raise ValueError(f"no cell of the table {table!r} matches {pattern!r}; near or all: {', '.join(near)}")
    return [cell for cell in cells if not patterns or any(matches(cell, pattern) for pattern in patterns)]


def _start(document: Mapping[str, Any], documents: Mapping[Path, Any], table: str, experiments: Path) -> Cell | None:
    """The experiment whose run stands in `init_from`: RUNS/seed_0, where RUNS is that experiment's folder of runs. None where
    the weights come with mamllit."""
    if (begun := document.get("init_from")) is None or begun in pretrained.names():
        return None
    root = str(Path(begun).parent)
    for path, other in documents.items():
        if (other.get("trainer") or {}).get("default_root_dir") == root:
            name, start = str(path.relative_to(experiments).with_suffix("")), _start(other, documents, table, experiments)
            return Cell(name, table, _relative(path), other, start)
    raise ValueError(f"init_from is {begun!r}, and no experiment has its runs in {root}")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
