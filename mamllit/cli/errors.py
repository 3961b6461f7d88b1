"""What a user gets wrong is said in one line; where it comes from is shown on request."""

import re
from typing import Any

import wandb
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

DEBUG = "--debug"
# What says in a sentence what is wrong with a file, a setting or a number; anything else is a fault of the program, and where
# it is belongs to it.
SAID = (ValueError, OSError, FloatingPointError, MisconfigurationException, wandb.Error, ArgumentError)


class Parser(LightningArgumentParser):
    """LightningCLI's, whose errors come without the usage: two hundred settings would stand before them."""

    def print_usage(self, file: Any = None) -> None:
        """Nothing; `--help` has it all."""


def one_line(error: Exception) -> str:
    """What an error says: of jsonargparse's account of every type that it has tried, the reason that is ours."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("Does not validate against any of the Union subtypes"):
        reasons = re.findall(r"^\s*- (?!Expected an? |Does not validate)(.+)", text, flags=re.MULTILINE)
        text = reasons[0] if reasons else text
    text = re.sub(r":\n\s*- ", ": ", text)  # a list
    text = re.sub(r"\n\s+- ", ", ", text)
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(?<=\w)\n", ".\n", text))
