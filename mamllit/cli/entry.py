"""The `mamllit` command: runs the command that is asked for, or lists all of them."""

import difflib
import sys

import mamllit
from mamllit.cli import commands
from mamllit.cli.commands.experiments import resolve

DEBUG = "--debug"


def overview() -> str:
    """What `mamllit --help` prints."""
    every = commands.TRAINER_COMMANDS | commands.COMMANDS
    lines = [f"  {name:12}{text}" for name, text in every.items()]
    return "\n".join(
        [
            f"mamllit {mamllit.__version__}: meta-learning with PyTorch Lightning",
            "",
            "usage: mamllit COMMAND ...",
            "",
            *lines,
            "",
            "mamllit COMMAND --help lists a command's options. To get started:",
            "",
            "  mamllit fit -c demo                             MAML on sine waves, about a minute",
            "  mamllit fit --help                              every setting of a run",
            "  mamllit fit --model.help MetaLearner            the settings of a system; --data.help for a DataModule",
        ]
    )


def main() -> None:
    """Entry point of the `mamllit` command."""
    name, words = (sys.argv[1], sys.argv[2:]) if sys.argv[1:] else ("--help", [])
    every = [*commands.TRAINER_COMMANDS, *commands.COMMANDS]
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name == "--version":
        print(f"mamllit {mamllit.__version__}")
    elif name not in every:
        near = difflib.get_close_matches(name, every, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        sys.exit(f"mamllit: there is no command {name!r}; {hint}the commands are: {', '.join(every)}")
    elif name in commands.TRAINER_COMMANDS and not words:
        sys.exit(f"mamllit {name}: which experiment? try `mamllit {name} -c demo`; `mamllit experiments` lists the names")
    else:
        try:
            _run(name, words)
        except Exception as error:
            from mamllit.cli.errors import SAID, one_line  # with Lightning and W&B, which take seconds to import

            if DEBUG in words or not isinstance(error, SAID):
                raise
            sys.exit(f"mamllit {name}: {one_line(error)} ({DEBUG} shows where)")


def _run(name: str, words: list[str]) -> None:
    if name in commands.COMMANDS:
        commands.run(name, [word for word in words if word != DEBUG])
    else:
        sys.argv[1:] = [name, *resolve(words)]  # in place: the processes that Lightning starts for other ranks copy it
        from mamllit.cli.program import run

        run()
