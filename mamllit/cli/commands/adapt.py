"""`mamllit adapt`: a trained checkpoint on a user's own folders; see `mamllit.inference`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mamllit.inference.adapt import CSV, SHEET, adapt_folder


def main(args: Sequence[str]) -> None:
    """Adapt a trained checkpoint to the classes of one folder, and predict the images of another."""
    parser = ArgumentParser(
        prog="mamllit adapt",
        description=main.__doc__,
    )
    parser.add_function_arguments(adapt_folder, as_positional=False, skip={"preparation"})
    given = parser.parse_args(list(args)).as_dict()
    found = adapt_folder(**given)
    for note in found.notes:
        print(note)
    for name, count in found.repeated.items():
        print(f"class {name}: its {count} support image{'s' * (count != 1)} repeated to weigh as much as the largest class")
    hits, known = found.hits
    accuracy = f"; right {hits} of {known} whose class is known ({100 * hits / known:.1f}%)" if known else ""
    print(f"{len(found.files)} images, {len(found.classes)} classes, {found.steps} inner steps{accuracy}")
    if found.batch_norm == "transductive":
        print("transductive batch norm: each prediction depends on the other query images")
    out = Path(given["out"]).expanduser()
    print(f"predictions: {out / CSV}")
    print(f"contact sheet: {out / SHEET}")
