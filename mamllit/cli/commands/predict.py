"""`mamllit predict CLASSIFIER FOLDER`: a classifier of `mamllit adapt --save` on more images; see `mamllit.inference`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mamllit.cli.commands.adapt import say
from mamllit.inference.folders import CSV, REPORT, predict_folder


def main(args: Sequence[str]) -> None:
    """Predict the images of a folder by a classifier that `mamllit adapt --save` wrote."""
    parser = ArgumentParser(prog="mamllit predict", description=main.__doc__)
    parser.add_function_arguments(predict_folder, as_positional=True, skip={"progress"})
    given = parser.parse_args(list(args)).as_dict()
    say(predict_folder(**given, progress=True))
    out = Path(given["out"]).expanduser()
    print(f"predictions: {out / CSV}")
    if given["report"]:
        print(f"report: {out / REPORT}")
