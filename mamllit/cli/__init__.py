"""The command line: `mamllit fit|validate|test -c CONFIG.yaml`, and the commands that need no Trainer."""

import importlib
from typing import Any

from mamllit.cli.entry import main

__all__ = ["TRAINER_DEFAULTS", "MamllitCLI", "main", "run", "settings"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # what trains is imported with Lightning, for which a list of commands need not wait
        return getattr(importlib.import_module("mamllit.cli.program"), name)
    raise AttributeError(f"module 'mamllit.cli' has no attribute {name!r}; it offers {', '.join(__all__)}")
