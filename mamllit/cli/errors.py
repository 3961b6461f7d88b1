"""What a user gets wrong is said in one line; where it comes from is shown on request."""

import re
from typing import Any, NoReturn

import wandb
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

DEBUG = "--debug"
# What says in a sentence what is wrong with a file, a setting or a number; anything else is a fault of the program, and where
# it is belongs to it.
SAID = (ValueError, OSError, FloatingPointError, MisconfigurationException, wandb.Error, ArgumentError)

# What jsonargparse says around the reasons: which types it has tried, the value as it holds it, and that "none" was not given.
ALTERNATIVES = r"^\s*(Does not validate against|Subtypes: |Errors:|- Expected a <class 'NoneType'>|Given value).*\n?"


class Parser(LightningArgumentParser):
    """LightningCLI's, whose errors come without the usage: two hundred settings would stand before them."""

    def print_usage(self, file: Any = None) -> None:
        """Nothing; `--help` has it all."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Of a value that no alternative of a type accepts, only the reasons are said."""
        super().error(re.sub(ALTERNATIVES, "", message, flags=re.MULTILINE), ex)


def one_line(error: Exception) -> str:
    """What an error says: of jsonargparse's account of every type that it has tried, the reason that is ours."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("Does not validate against any of the Union subtypes"):
        reasons = re.findall(r"^\s*- (?!Expected an? |Does not validate)(.+)", text, flags=re.MULTILINE)
        text = reasons[0] if reasons else text
    text = re.sub(r":\n\s*- ", ": ", text)  # a list
    text = re.sub(r"\n\s+- ", ", ", text)
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(?<=\w)\n", ".\n", text))
