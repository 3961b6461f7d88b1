"""Adapt a trained checkpoint to the classes of a support folder, and predict the images of a query folder.

Why not Lightning's `predict`: it wants a Trainer, a DataModule and a configuration. A checkpoint already holds its
configuration, and the two folders are one single episode, which is what a method's verbs are written for.

Two decisions, both for what a user's folders are like. Classes of different size: the images of the smaller ones are
repeated in turn until all have as many as the largest, so that each class weighs the same in the inner loss and in the batch
norm, as in meta-training. Batch norm: "inductive" by default, because a user's query folder is seldom balanced. With Omniglot
characters (experiments/own_images.yaml, 300 iterations, 60 episodes of 5 ways, 1 shot) transductive and inductive accuracy were
66 and 64% on 75 query images of all classes alike, but 28 and 63% on three images of one class.
"""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from mamllit.core.episode import Episode, Examples
from mamllit.data.preparation import Preparation
from mamllit.engine.company import company
from mamllit.engine.cpu import fast_on_cpu
from mamllit.engine.evaluation import BATCH_NORMS, BatchNorm, predict
from mamllit.inference.contact_sheet import contact_sheet
from mamllit.inference.images import as_ink, known_preparation, left_out, query_files, read_images, support_files, warnings_of
from mamllit.methods import Method
from mamllit.pretrained.build import rebuild
from mamllit.pretrained.files import read

CSV, SHEET = "predictions.csv", "contact_sheet.png"
AT_ONCE = 200  # query images predicted together where they do not depend on each other


@dataclass(frozen=True)
class Predictions:
    """What was predicted for n query images of N classes.

    Args:
        files: the query images, from the query folder.
        classes: class names, in the order of the columns of `probabilities`.
        probabilities: [n, N].
        truth: per image the class folder that it lies in, or None where that is no class of the support.
        repeated: classes whose images were repeated to weigh as much as the largest, with their number of images.
        notes: what a user should know: files that were not read, images that were inverted another way than usual.
    """

    files: list[Path]
    classes: list[str]
    probabilities: Tensor
    truth: list[str | None]
    steps: int
    batch_norm: BatchNorm
    repeated: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[i] for i in self.probabilities.argmax(-1).tolist()]

    @property
    def hits(self) -> tuple[int, int]:
        """Images predicted rightly, of those whose class is known."""
        known = [(p, t) for p, t in zip(self.predicted, self.truth, strict=True) if t is not None]
        return sum(p == t for p, t in known), len(known)

    def write_csv(self, path: Path) -> None:
        """One row per image: file, predicted and true class (empty if unknown), batch norm, and p(class) for every class."""
        rows = zip(self.files, self.predicted, self.truth, self.probabilities.tolist(), strict=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "predicted", "true", "batch_norm", *(f"p({name})" for name in self.classes)])
            for name, predicted, truth, row in rows:
                writer.writerow([name.as_posix(), predicted, truth or "", self.batch_norm, *(f"{p:.6f}" for p in row)])


def adapt_folder(
    checkpoint: str | Path,
    support: str | Path,
    query: str | Path,
    out: str | Path = "adapted",
    steps: int | None = None,
    batch_norm: BatchNorm = "inductive",
    trusted: Sequence[str] = (),
    preparation: Preparation | None = None,
) -> Predictions:
    """Adapt to the classes of `support`, predict the images of `query`, and write both into `out`.

    Writes `predictions.csv` and `contact_sheet.png`.

    Args:
        checkpoint: a name that comes with mamllit, or the path of a file of `mamllit export`.
        support: a folder with one sub-folder of images per class; its name is the class's name.
        query: a folder of images, flat or nested. Where an image lies in a folder with the name of a class, the
            prediction is checked against it.
        out: folder for the two files; made where it is missing.
        steps: inner steps (default: the number whose value is the checkpoint's result).
        batch_norm: "inductive" normalises a query image by the support, so that it is predicted by itself. "transductive", as
            in the paper and in most published numbers, normalises it by all query images together: more accurate if they are
            many and of all classes alike, and wrong if they are few or of one class.
        trusted: your own packages whose classes the checkpoint may make; their code is run.
        preparation: how to prepare the images, for a checkpoint of a DataModule of your own.

    Raises:
        FileNotFoundError: for an unknown checkpoint, or folders that are missing or without images.
        ValueError: for another number of classes than the checkpoint takes, images that cannot be read (all are listed),
            or a wrong argument.
        PermissionError, NotADirectoryError: if `out` cannot be written, before anything is computed.
    """
    if batch_norm not in BATCH_NORMS:
        raise ValueError(f"batch_norm is {batch_norm!r}; it must be 'inductive' or 'transductive'")
    if steps is not None and steps < 0:
        raise ValueError(f"steps is {steps}; it must be >= 0")
    described, tensors = read(checkpoint)
    method = rebuild(described, tensors, trusted)
    by_class, queries = support_files(support), query_files(query)
    check_ways(method, list(by_class))
    how = known_preparation(described.data) if preparation is None else preparation
    folder = _writable(out)
    steps = described.steps if steps is None else steps

    shots = max(map(len, by_class.values()))
    files = [file for own in by_class.values() for file in own]
    images = read_images([*files, *queries], how)  # together, so that all unreadable ones are told at once
    notes = [f"{folder}: not read, for their endings: {others}" for folder in (support, query) if (others := left_out(folder))]
    notes += warnings_of(by_class, queries)
    images, drawn = as_ink(images, how)
    if drawn != how:
        notes.append(f"the images are light on dark: they are not inverted, so that their ink is 1, as {described.name} saw it")
    seen = (images - how.mean) / how.std
    rows = {file: i for i, file in enumerate(files)}
    balanced = [rows[file] for own in by_class.values() for file in islice(cycle(own), shots)]
    labels = torch.arange(len(by_class)).repeat_interleave(shots)
    probabilities = classify(method, Examples(seen[balanced], labels, len(by_class)), seen[len(files) :], steps, batch_norm)

    root = Path(query).expanduser()
    relative = [file.relative_to(root) for file in queries]
    predictions = Predictions(
        files=relative,
        classes=list(by_class),
        probabilities=probabilities,
        truth=[next((part for part in reversed(file.parts[:-1]) if part in by_class), None) for file in relative],
        steps=steps,
        batch_norm=batch_norm,
        repeated={name: len(own) for name, own in by_class.items() if len(own) < shots},
        notes=tuple(notes),
    )
    predictions.write_csv(folder / CSV)
    firsts = torch.split(images[: len(files)], [len(own) for own in by_class.values()])
    shown = dict(zip(by_class, firsts, strict=True))
    title = f"{described.name}, {steps} inner step{'s' * (steps != 1)}, {batch_norm} batch norm"
    sheet = contact_sheet(
        shown, images[len(files) :], predictions.predicted, probabilities, predictions.truth, drawn.invert, title
    )
    sheet.savefig(folder / SHEET, dpi=110)
    return predictions


def classify(method: Method, support: Examples, query_x: Tensor, steps: int, batch_norm: BatchNorm) -> Tensor:
    """Class probabilities [n, N] of the query images, after `steps` inner steps on the support."""
    together = len(query_x) if batch_norm == "transductive" else AT_ONCE

    def unlabelled(x: Tensor) -> Examples:
        return Examples(x, torch.zeros(len(x), dtype=torch.int64), support.ways)

    # the gradients of the inner loop are torch.func's, which does not heed no_grad
    with torch.no_grad(), fast_on_cpu(support.x[None]):
        company(method, Episode(support, unlabelled(query_x)))
        state = method.adapt(support, steps)
        parts = [predict(method, state, Episode(support, unlabelled(part)), batch_norm) for part in query_x.split(together)]
    return torch.cat(parts).softmax(-1)


def check_ways(method: Method, classes: Sequence[str]) -> None:
    """Raise `ValueError` where the method cannot tell these classes apart: a network with a head takes as many as that."""
    if method.objective.metric_name != "accuracy":
        raise ValueError(f"the checkpoint was not trained to classify: its metric is {method.objective.metric_name}")
    found = f"{len(classes)}: {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
    if len(classes) < 2:
        raise ValueError(f"at least 2 classes are needed, one sub-folder each; the support folder has {found}")
    outputs = getattr(getattr(method, "backbone", None), "out_features", None)
    if outputs is not None and outputs != len(classes):
        raise ValueError(
            f"the checkpoint takes exactly {outputs} classes, for its network has {outputs} outputs; the support folder has "
            f"{found}. Use a checkpoint of {len(classes)} ways (`data.ways` and `out_features`), or {outputs} sub-folders"
        )


def _writable(out: str | Path) -> Path:
    """The folder `out`, made where it is missing; tried now, so that nothing is computed in vain."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write into the folder {folder} ({error.strerror}); name another with --out"
        ) from error
    return folder
