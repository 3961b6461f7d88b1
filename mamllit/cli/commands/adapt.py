"""`mamllit adapt`: classes from a user's own folders; see `mamllit.inference`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mamllit.inference.folders import CSV, REPORT, SHEET, adapt_folder
from mamllit.inference.outcome import Outcome, readable
from mamllit.inference.settings import Settings


def main(args: Sequence[str]) -> None:
    """Learn the classes of one folder of images, by pretrained features or a checkpoint, and predict those of another."""
    parser = ArgumentParser(prog="mamllit adapt", description=main.__doc__)
    parser.add_function_arguments(adapt_folder, as_positional=False, skip={"settings"})
    parser.add_class_arguments(Settings, skip={"preparation", "progress", "compare"})
    parser.add_argument("--compare", action="store_true", help="compare the estimated accuracy of all heads")
    given = parser.parse_args(list(args)).as_dict()
    folders = {name: given.pop(name) for name in ("support", "query", "out", "save")}
    found = adapt_folder(**folders, settings=Settings(**given, progress=True))
    say(found)
    if found.head.endswith("transductive batch norm"):
        print("transductive batch norm: each prediction depends on the other query images")
    out = Path(folders["out"]).expanduser()
    print(f"predictions: {out / CSV}")
    print(f"contact sheet: {out / SHEET}")
    print(f"report: {out / REPORT}")
    if folders["save"]:
        print(f"classifier: {Path(folders['save']).expanduser()}, for mamllit predict and mamllit export --format onnx")


def say(found: Outcome) -> None:
    """What an adaptation found, in lines."""
    for note in found.notes:
        print(readable(note))
    if found.estimates:
        print(table(found))
    hits, known = found.hits
    accuracy = f"; {hits} of {known} with a known class are right ({100 * hits / known:.1f}%)" if known else ""
    unsure = int(found.unsure.sum())
    doubt = f"; {unsure} unsure (below {found.unsure_below:g})" if unsure else ""
    print(f"{len(found.query)} images, {len(found.classes)} classes, {found.features}, {found.head}{accuracy}{doubt}")


def table(found: Outcome) -> str:
    """The estimates, side by side."""
    first = found.estimates[0]
    how = "leave-one-out" if first.folds == first.images else f"{first.folds} folds"
    width = max(len(entry.head) for entry in found.estimates)
    lines = [f"accuracy on the support itself ({how}, {first.images} images; chance {100 * found.chance:.1f}%):"]
    for entry in found.estimates:
        used = "  <- used" if entry is first and len(found.estimates) > 1 else ""
        lines.append(f"  {entry.head:{width}}  {entry.percent:24}{entry.seconds:7.2f} s{used}")
    return "\n".join(lines)
