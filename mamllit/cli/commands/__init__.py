"""The commands that need no Trainer. Each is one file with a `main(args)`, whose docstring says what it does."""

from collections.abc import Callable, Sequence

from mamllit.cli.commands import adapt, experiments, export, predict, results, rollout

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "adapt": adapt.main,
    "export": export.main,
    "experiments": experiments.main,
    "predict": predict.main,
    "results": results.main,
    "rollout": rollout.main,
}


def summaries() -> dict[str, str]:
    """Name -> what the command does, in one line."""
    lines = {name: (main.__doc__ or "").split("\n")[0].rstrip(".") for name, main in COMMANDS.items()}
    return {name: line[:1].lower() + line[1:] for name, line in lines.items()}


def run(name: str, args: Sequence[str]) -> None:
    """Run a command."""
    COMMANDS[name](args)
