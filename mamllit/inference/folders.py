"""From folders of images to files: what was predicted as a table, a contact sheet and a page, and the classifier itself."""

import re
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mamllit.data.preparation import Preparation
from mamllit.inference.adapt import fitted, outcome, seen_of
from mamllit.inference.classifier import CheckpointImages, Classifier, check_name, load_classifier
from mamllit.inference.contact_sheet import MOST, contact_sheet
from mamllit.inference.images import left_out, query_files, read_images
from mamllit.inference.outcome import Outcome
from mamllit.inference.report import write_report
from mamllit.inference.settings import Settings, check_share
from mamllit.runs import durable

CSV, SHEET, REPORT = "predictions.csv", "contact_sheet.png", "report.html"
GLYPHS = r"Glyph .* missing from"  # how matplotlib says that a font lacks a letter
THUMBNAIL = Preparation(96, 3, upright=True)


def adapt_folder(
    support: str | Path,
    query: str | Path,
    out: str | Path = "adapted",
    settings: Settings | None = None,
    save: str | Path | None = None,
) -> Outcome:
    """Adapt to the classes of `support`, predict the images of `query`, and write both into `out`.

    Writes `predictions.csv`, `contact_sheet.png` and `report.html`, a page with pictures that needs no network.

    Args:
        support: a folder with one sub-folder of images per class; its name is the class's name.
        query: a folder of images, flat or nested. Where an image lies in a folder with the name of a class, the
            prediction is checked against it.
        out: folder for the files; made where it is missing.
        settings: see `Settings`.
        save: a file for the adapted classifier, ending in .safetensors; `predict_folder` uses it.

    Raises:
        OSError: if `out` or `save` cannot be written, before anything is computed.
        ValueError: if `out` lies in one of the two folders, of whose images the contact sheet would be one the next time.
        the others: see `fewshot`.
    """
    folder = Path(out).expanduser()
    for place in (support, query):
        if folder.resolve().is_relative_to(Path(place).expanduser().resolve()):
            raise ValueError(
                f"out is {out}, in the folder of images {place}: the contact sheet would be taken for an image of it the next "
                "time; name a folder elsewhere with --out"
            )
    file = None if save is None else check_name(save)

    def ready() -> None:
        _make(folder)
        if file is not None:
            durable.check_place(file, "--save")

    found, classifier = fitted(support, query, settings or Settings(), ready)
    found = _written(found, classifier, folder)
    if save is not None:
        classifier.save(save)
    return found


def predict_folder(
    classifier: str | Path,
    query: str | Path,
    out: str | Path = "predicted",
    unsure: float | None = None,
    report: bool = True,
    cache_dir: str | Path | None = None,
    trusted: Sequence[str] = (),
    progress: bool = False,
) -> Outcome:
    """Predict the images of a folder by a classifier that `mamllit adapt --save` wrote.

    Writes `predictions.csv` and `report.html` into `out`.

    Args:
        classifier: the file.
        query: a folder of images, flat or nested.
        out: folder for the files; made where it is missing.
        unsure: predictions of a lower probability are marked; by default the bound that `mamllit adapt` had.
        report: write `report.html`, too; without it many large images take less time.
        cache_dir: a folder for the features, where the folder of images cannot be written.
        trusted: your own packages whose classes the classifier's checkpoint may make; their code is run.
        progress: show a bar while images are embedded.

    Raises:
        FileNotFoundError: where there is no such file, or no image.
        ValueError: for a file that is no classifier, images that cannot be read, or a wrong argument.
        PermissionError, NotADirectoryError: if `out` cannot be written, before anything is computed.
    """
    start = time.perf_counter()
    if unsure is not None:
        check_share(unsure)
    folder, root = Path(out).expanduser(), Path(query).expanduser()
    loaded, files = load_classifier(classifier, trusted), query_files(root)
    _make(folder)
    x, problem = seen_of(loaded.seen, root, files, cache_dir, progress)
    others = left_out(root)
    notes = (*((f"{query}: unsupported files skipped: {others}",) if others else ()), *((problem,) if problem else ()))
    found = outcome(loaded, files, x, root, loaded.unsure if unsure is None else unsure, notes, start)
    found.write_csv(folder / CSV)
    if report:
        write_report(found, folder / REPORT)
    return found


def _written(found: Outcome, classifier: Classifier, folder: Path) -> Outcome:
    """What was found, with a note where the contact sheet lacks letters."""
    found.write_csv(folder / CSV)
    seen = classifier.seen
    how = seen.how if isinstance(seen, CheckpointImages) else THUMBNAIL
    of_class: dict[str, list[Path]] = {name: [] for name in found.classes}
    for file, label in zip(found.support, found.support_labels.tolist(), strict=True):
        of_class[found.classes[label]].append(file)
    shown = {name: read_images(own, how) for name, own in of_class.items()}
    drawn = read_images(found.query[:MOST], how)
    sheet = contact_sheet(
        shown, drawn, found.labels, found.probabilities, found.truth, how.invert, f"{found.features}, {found.head}"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings("always", GLYPHS)
        sheet.savefig(folder / SHEET, dpi=110)
    if any(re.match(GLYPHS, str(warning.message)) for warning in said):
        found = replace(found, notes=(*found.notes, f"{SHEET} lacks letters of some class names: no font here has them"))
    write_report(found, folder / REPORT)
    return found


def _make(folder: Path) -> None:
    """Make the folder where it is missing; tried before anything is computed, so that nothing is computed in vain."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write to the folder {folder} ({error.strerror}); name another with --out"
        ) from error
