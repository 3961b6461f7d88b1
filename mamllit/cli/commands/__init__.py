"""The commands beside Lightning's: `mamllit export` and `mamllit adapt`. Each is one file with a `main(args)`."""

from collections.abc import Callable, Sequence

from mamllit.cli.commands import adapt, export

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"export": export.main, "adapt": adapt.main}
LISTED = "Also: `mamllit export RUN_DIR` makes a small file of a trained model, and `mamllit adapt` classifies your own images."


def run(name: str, args: Sequence[str]) -> None:
    """Run a command."""
    COMMANDS[name](args)
