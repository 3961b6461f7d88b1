"""A user's mistakes are reported in one line; `--debug` shows where they come from."""

import re
from typing import Any, NoReturn

import wandb
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# What says in a sentence what is wrong with a file, a setting or a number; anything else is a fault of the program, and where
# it is belongs to it.
SAID = (ValueError, OSError, FloatingPointError, MisconfigurationException, wandb.Error, ArgumentError)

# What jsonargparse writes around the reasons: the types it has tried, its own form of the value, and that null was expected.
ALTERNATIVES = r"^\s*(Does not validate against|Subtypes: |Errors:|- Expected a <class 'NoneType'>|Given value).*\n?"


class Parser(LightningArgumentParser):
    """LightningCLI's, whose errors come without the usage: two hundred settings would stand before them."""

    def print_usage(self, file: Any = None) -> None:
        """Nothing; `--help` has it all."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """For a value that no alternative of a type accepts, print the reasons alone."""
        super().error(re.sub(ALTERNATIVES, "", message, flags=re.MULTILINE), ex)


def one_line(error: Exception) -> str:
    """An error's text in one line; of the reasons that jsonargparse gives for every type it has tried, only ours."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("Does not validate against any of the Union subtypes"):
        reasons = re.findall(r"^\s*- (?!Expected an? |Does not validate)(.+)", text, flags=re.MULTILINE)
        text = reasons[0] if reasons else text
    text = re.sub(r":\n\s*- ", ": ", text)  # a list
    text = re.sub(r"\n\s+- ", ", ", text)
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(?<=\w)\n", ".\n", text))
