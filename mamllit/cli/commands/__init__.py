"""The commands, by name, with what each does. Those that need no Trainer are one file each here, with a `main(args)`.

A command's file is imported when it runs: PyTorch and Lightning take seconds, and `mamllit --help` or a mistyped name need not
wait for them.
"""

import importlib
from collections.abc import Sequence

TRAINER_COMMANDS = {
    "fit": "meta-train a method and test it at the end",
    "validate": "evaluate a trained method on the meta-val episodes",
    "test": "evaluate a trained method on the meta-test episodes",
}
COMMANDS = {
    "adapt": "learn the classes of one folder of images, by pretrained features or a checkpoint, and predict those of another",
    "export": "write the trained model of a run, or an adapted classifier, as one file",
    "experiments": "list the experiments that `-c` takes by name, or copy some of them",
    "predict": "predict the images of a folder by a classifier that `mamllit adapt --save` wrote",
    "results": "file what a run measured, for the tables of the documentation",
    "rollout": "let a trained policy act in a task before and after adapting to it, and film it",
}


def run(name: str, args: Sequence[str]) -> None:
    """Run a command of those that need no Trainer."""
    importlib.import_module(f"mamllit.cli.commands.{name}").main(args)
