"""Sizes of a network that the command line takes from the data (see `mamllit.cli.agreement`)."""

from typing import Literal

DATA: Literal["data"] = "data"
Size = int | Literal["data"]


def number(name: str, size: Size) -> int:
    """The size as a number.

    Raises:
        ValueError: for "data", which only the command line can fill in.
    """
    if size == DATA:
        raise ValueError(f"{name} is 'data', which only the command line fills in from the DataModule; give a number here")
    return int(size)
