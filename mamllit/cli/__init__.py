"""The command line: `mamllit fit|validate|test -c CONFIG.yaml`, and the commands that need no Trainer."""

from mamllit.cli.entry import main
from mamllit.cli.program import TRAINER_DEFAULTS, MamllitCLI, run, settings

__all__ = ["TRAINER_DEFAULTS", "MamllitCLI", "main", "run", "settings"]
