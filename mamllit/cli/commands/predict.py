"""`mamllit predict CLASSIFIER FOLDER`: a classifier of `mamllit adapt --save` on more images; see `mamllit.inference`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mamllit.cli.commands.adapt import say
from mamllit.inference.adapt import CSV, predict_folder


def main(args: Sequence[str]) -> None:
    """Predict the images of a folder by a classifier that `mamllit adapt --save` wrote."""
    parser = ArgumentParser(prog="mamllit predict", description=main.__doc__)
    parser.add_function_arguments(predict_folder, as_positional=True, skip={"progress"})
    given = parser.parse_args(list(args)).as_dict()
    say(predict_folder(**given, progress=True))
    print(f"predictions: {Path(given['out']).expanduser() / CSV}")
