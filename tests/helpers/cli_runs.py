"""Short runs of the command line for the tests in `tests/cli`, and what they leave behind."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SINE = str(REPOSITORY / "experiments" / "maml" / "sine_10shot.yaml")
SMALL = str(REPOSITORY / "tests" / "small.yaml")
PUBLISHED = '{"paper[20]": {1: 0.6789}}'

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings(r"ignore:(?s).*eprecat.*"),  # Lightning's use of jsonargparse
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # it has: the run was copied
]


def command(verb: str, root: Path, *more: str) -> list[str]:
    return [verb, "-c", SINE, "-c", SMALL, "--trainer.default_root_dir", str(root), *more]


def short(root: Path, *more: str) -> list[str]:
    """The shortest fit: two meta-updates, no test."""
    return command("fit", root, "--trainer.max_steps", "2", "--test_after_fit", "false", *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))
