"""Adapt to the classes of a support folder, and predict the images of a query folder.

By features of a network that was trained elsewhere and a head on them, or by a checkpoint of mamllit. Why not Lightning's
`predict`: it wants a Trainer, a DataModule and a configuration. A checkpoint already holds its configuration, and the two
folders are one single episode, which is what a method's verbs are written for.

Two decisions for checkpoints, both for what a user's folders are like. Classes of different size: the images of the smaller
ones are repeated in turn until all have as many as the largest, so that each class weighs the same in the inner loss and in the
batch norm, as in meta-training. Batch norm: "inductive" by default, because a user's query folder is seldom balanced. With
Omniglot characters (experiments/own_images.yaml, 300 iterations, 60 episodes of 5 ways, 1 shot) transductive and inductive
accuracy were 66 and 64% on 75 query images of all classes alike, but 28 and 63% on three images of one class.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mamllit.backbones.timm_net import PRETRAINED
from mamllit.core.episode import Examples
from mamllit.data.preparation import Preparation
from mamllit.engine.evaluation import BATCH_NORMS, BatchNorm
from mamllit.inference.classifier import (
    CheckpointImages,
    Classifier,
    Seen,
    candidates,
    check_name,
    classify,
    load_classifier,
    outputs,
    own_name,
    weighed,
)
from mamllit.inference.contact_sheet import MOST, contact_sheet
from mamllit.inference.estimate import FOLDS, estimate
from mamllit.inference.features import DEFAULT, TimmFeatures, timm_features
from mamllit.inference.heads import HEADS
from mamllit.inference.images import (
    as_ink,
    known_preparation,
    left_out,
    query_files,
    read_images,
    support_files,
    warnings_of,
)
from mamllit.inference.outcome import Outcome
from mamllit.inference.report import write_report
from mamllit.methods import Method
from mamllit.pretrained.build import rebuild
from mamllit.pretrained.files import read

__all__ = ["CSV", "REPORT", "SHEET", "Settings", "adapt_folder", "check_ways", "classify", "fewshot", "predict_folder"]

CSV, SHEET, REPORT = "predictions.csv", "contact_sheet.png", "report.html"
BEST = "logistic"  # the head on features, where none is named
NETWORK_FOLDS = 5  # of an estimate where the whole network adapts in each
THUMBNAIL = Preparation(96, 3, upright=True)
Support = str | Path | Mapping[str, Sequence[str | Path]]
Query = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Settings:
    """How classes are learned; the defaults are right for photographs.

    Args:
        features: "timm:" and the name of a network of timm (extra `timm`), which stays as it is; by default
            timm:tf_efficientnet_lite0, whose weights come with the extra. The features of a folder are kept in it, in
            `.mamllit-cache`.
        weights: a file with the network's weights, safetensors or of torch.save; "pretrained" for timm's own.
        checkpoint: in the place of features: a name that comes with mamllit, or the path of a file of `mamllit export`.
        head: logistic, nearest_mean, euclidean_mean, nearest_image or baseline++; of a checkpoint also its own method, by
            default. On features logistic by default.
        compare: estimate all heads on the support, not only the one that is used.
        folds: of the estimates; by default leave-one-out up to 50 images, else 10 (5 where the whole network adapts).
        unsure: predictions of a lower probability are marked.
        cache_dir: a folder for the features, where the folders of images cannot be written.
        steps: inner steps (default: the number whose value is the checkpoint's result).
        batch_norm: of a checkpoint. "inductive" normalises a query image by the support, so that it is predicted by itself.
            "transductive", as in the paper and in most published numbers, normalises it by all query images together: more
            accurate if they are many and of all classes alike, and wrong if they are few or of one class.
        trusted: your own packages whose classes the checkpoint may make; their code is run.
        preparation: how to prepare the images, for a checkpoint of a DataModule of your own.
        progress: show a bar while images are embedded.

    Raises:
        ValueError: for what is out of its bounds.

    >>> from mamllit.inference import Settings
    >>> Settings(head="nearest_mean", unsure=0.7).features is None  # the default network
    True
    """

    features: str | None = None
    weights: str | Path = PRETRAINED
    checkpoint: str | Path | None = None
    head: str | None = None
    compare: bool = False
    folds: int | None = None
    unsure: float = 0.5
    cache_dir: str | Path | None = None
    steps: int | None = None
    batch_norm: BatchNorm = "inductive"
    trusted: Sequence[str] = ()
    preparation: Preparation | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm is {self.batch_norm!r}; it must be 'inductive' or 'transductive'")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it must be >= 0")
        _check_share(self.unsure)
        if self.checkpoint is not None and (self.features is not None or self.weights != PRETRAINED):
            raise ValueError("a checkpoint has its own network: give a checkpoint, or features (and their weights), not both")


def fewshot(
    support: Support,
    query: Query,
    features: str | None = None,
    checkpoint: str | Path | None = None,
    head: str | None = None,
    compare: bool = False,
    settings: Settings | None = None,
) -> Outcome:
    """Learn classes from a few images of each, and predict others; one call, for a notebook.

    Args:
        support: a folder with one sub-folder of images per class, whose name is the class's name; or the files of each class,
            by name. Any number of classes from two on, and of images per class.
        query: a folder of images, flat or nested, or files. Where an image lies in a folder with the name of a class, the
            prediction is checked against it.
        features, checkpoint, head, compare: see `Settings`.
        settings: all others; those above win.

    Raises:
        FileNotFoundError: for an unknown checkpoint, or folders that are missing or without images.
        ValueError: for another number of classes than the checkpoint takes, images that cannot be read (all are listed), an
            unknown head, features that cannot be had, or settings out of their bounds.
        ConnectionError: where weights cannot be loaded.

    Example: `mamllit.fewshot("animals/known", "animals/new", compare=True).labels`.
    """
    settings = settings or Settings()
    given = {"features": features, "checkpoint": checkpoint, "head": head, "compare": compare or None}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    return _fitted(support, query, settings, None)[0]


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
        PermissionError, NotADirectoryError: if `out` cannot be written, before anything is computed.
        the others: see `fewshot`.
    """
    if save is not None:
        check_name(save)
    found, classifier, folder = _fitted(support, query, settings or Settings(), out)
    assert folder is not None
    _write(found, classifier, folder)
    if save is not None:
        classifier.save(save)
    return found


def predict_folder(
    classifier: str | Path,
    query: str | Path,
    out: str | Path = "predicted",
    unsure: float = 0.5,
    cache_dir: str | Path | None = None,
    trusted: Sequence[str] = (),
    progress: bool = False,
) -> Outcome:
    """Predict the images of a folder by a classifier that `mamllit adapt --save` wrote.

    Writes `predictions.csv` into `out`.

    Args:
        classifier: the file.
        query: a folder of images, flat or nested.
        out: folder for the file; made where it is missing.
        unsure: predictions of a lower probability are marked.
        cache_dir: a folder for the features, where the folder of images cannot be written.
        trusted: your own packages whose classes the classifier's checkpoint may make; their code is run.
        progress: show a bar while images are embedded.

    Raises:
        FileNotFoundError: where there is no such file, or no image.
        ValueError: for a file that is no classifier, images that cannot be read, or a wrong argument.
        PermissionError, NotADirectoryError: if `out` cannot be written, before anything is computed.
    """
    start = time.perf_counter()
    _check_share(unsure)
    loaded, files, folder = load_classifier(classifier, trusted), query_files(query), _writable(out)
    x, problem = _seen_of(loaded.seen, Path(query), files, cache_dir, progress)
    others = left_out(query)
    notes = (*((f"{query}: not read, for their endings: {others}",) if others else ()), *((problem,) if problem else ()))
    found = _outcome(loaded, files, x, Path(query), unsure, notes, start)
    found.write_csv(folder / CSV)
    return found


def _fitted(
    support: Support, query: Query, settings: Settings, out: str | Path | None
) -> tuple[Outcome, Classifier, Path | None]:
    """What was predicted, by what, and the folder `out`, which is made once the settings have been checked."""
    start = time.perf_counter()
    loaded = None if settings.checkpoint is None else read(settings.checkpoint)
    by_class, files, root = _support(support)
    queries, query_root = _query(query)
    places = [place for place in (root, query_root) if place is not None]
    notes = [f"{place}: not read, for their endings: {others}" for place in places if (others := left_out(place))]
    notes += warnings_of(by_class, queries)
    labels = torch.tensor([i for i, own in enumerate(by_class.values()) for _ in own])
    seen: Seen
    steps = settings.steps
    if loaded is None:
        seen = timm_features(settings.features or DEFAULT, settings.weights)
        name = _checked_head(settings.head, seen, list(by_class))
        folder = None if out is None else _writable(out)
        x, problem = _seen_of(seen, root, files, settings.cache_dir, settings.progress)
        query_x, other = _seen_of(seen, query_root, queries, settings.cache_dir, settings.progress)
        notes += list(dict.fromkeys(text for text in (problem, other) if text))
    else:
        described, tensors = loaded
        method = rebuild(described, tensors, settings.trusted)
        how = known_preparation(described.data) if settings.preparation is None else settings.preparation
        seen = CheckpointImages(described, tensors, method, how)
        name = _checked_head(settings.head, seen, list(by_class))
        folder = None if out is None else _writable(out)
        images = read_images([*files, *queries], how)  # together, so that all unreadable ones are told at once
        images, drawn = as_ink(images, how)
        if drawn != how:
            notes.append(
                f"the images are light on dark: they are not inverted, so that their ink is 1, as {described.name} saw it"
            )
        seen = replace(seen, how=drawn)
        x, query_x = seen.seen(images[: len(files)]), seen.seen(images[len(files) :])
        steps = described.steps if steps is None and name == own_name(method) else steps
    classifier = Classifier(
        classes=tuple(by_class), files=tuple(files), support=Examples(x, labels, len(by_class)), seen=seen, head=name,
        method=candidates(seen)[name](x), steps=steps, batch_norm=settings.batch_norm,
    )  # fmt: skip
    if weighed(classifier.method, classifier.support) is not classifier.support:
        largest = max(map(len, by_class.values()))
        notes += [
            f"class {text}: its {len(own)} support image{'s' * (len(own) != 1)} repeated to weigh as much as the largest class"
            for text, own in by_class.items()
            if len(own) < largest
        ]
    classifier = _estimated(classifier, settings.compare, settings.folds)
    if classifier.temperature is None:
        notes.append("one image per class: nothing to estimate accuracy on, and the probabilities are not calibrated")
    return _outcome(classifier, queries, query_x, query_root, settings.unsure, tuple(notes), start), classifier, folder


def _estimated(classifier: Classifier, compare: bool, folds: int | None) -> Classifier:
    """With estimates, and the temperature of its head."""
    found = {}
    for name, make in candidates(classifier.seen).items():
        if name != classifier.head and not compare:
            continue
        method = make(classifier.support.x)
        own = name == classifier.head
        steps = classifier.steps if own else None

        def predict(known: Examples, x: Tensor, method: Method = method, steps: int | None = steps) -> Tensor:
            return outputs(method, known, x, steps, "inductive")

        on_features = isinstance(classifier.seen, TimmFeatures)
        result = estimate(name, method, classifier.support, predict, folds, FOLDS if on_features else NETWORK_FOLDS)
        if result is None:
            return classifier
        found[name] = result
    own_estimate, temperature = found.pop(classifier.head)
    others = sorted((entry for entry, _ in found.values()), key=lambda entry: -entry.accuracy)
    return replace(classifier, temperature=temperature, estimates=(own_estimate, *others))


def _outcome(
    classifier: Classifier,
    files: Sequence[Path],
    x: Tensor,
    root: Path | None,
    unsure: float,
    notes: tuple[str, ...],
    start: float,
) -> Outcome:
    classes = classifier.classes
    root = root.expanduser() if root else None
    below = [file.relative_to(root) if root else file for file in files]
    head = classifier.head
    if classifier.steps is not None and not isinstance(classifier.seen, TimmFeatures):
        head += f", {classifier.steps} inner step{'s' * (classifier.steps != 1)}, {classifier.batch_norm} batch norm"
    probabilities, nearest = classifier.probabilities(x), classifier.nearest(x)
    return Outcome(
        classes=classes,
        support=classifier.files,
        support_labels=classifier.support.y,
        query=tuple(files),
        probabilities=probabilities,
        nearest=nearest,
        truth=tuple(next((part for part in reversed(file.parts[:-1]) if part in classes), None) for file in below),
        head=head,
        features=classifier.seen.name,
        seconds=time.perf_counter() - start,
        unsure_below=unsure,
        estimates=classifier.estimates,
        temperature=classifier.temperature,
        root=root,
        notes=notes,
    )


def _seen_of(
    seen: Seen, root: Path | None, files: Sequence[Path], cache_dir: str | Path | None, progress: bool
) -> tuple[Tensor, str | None]:
    """Images as a head sees them, and a note where their features could not be kept."""
    if isinstance(seen, CheckpointImages) or (root is None and cache_dir is None):
        return seen.of_files(files, progress), None
    return seen.of_folder(root or Path("/"), files, cache_dir, progress)


def _support(support: Support) -> tuple[dict[str, list[Path]], list[Path], Path | None]:
    """The files of each class, all files, and the folder that they lie in."""
    if isinstance(support, str | Path):
        by_class, root = support_files(support), Path(support).expanduser()
    else:
        by_class, root = {name: [Path(file).expanduser() for file in own] for name, own in support.items()}, None
        if empty := [name for name, own in by_class.items() if not own]:
            raise FileNotFoundError(f"no images are given for these classes: {', '.join(empty)}")
    return by_class, [file for own in by_class.values() for file in own], root


def _query(query: Query) -> tuple[list[Path], Path | None]:
    if isinstance(query, str | Path):
        return query_files(query), Path(query).expanduser()
    if not query:
        raise FileNotFoundError("no query images are given")
    return [Path(file).expanduser() for file in query], None


def _checked_head(head: str | None, seen: Seen, classes: Sequence[str]) -> str:
    """The head's name; the first that a checkpoint has, and the best on features, where none is given."""
    known = candidates(seen)
    name = head or (BEST if isinstance(seen, TimmFeatures) else next(iter(known)))
    if name not in known:
        raise ValueError(f"head is {name!r}; the heads of {seen.name} are {', '.join(known)}")
    own = isinstance(seen, CheckpointImages) and name == own_name(seen.method)
    check_ways(seen.method if own else None, classes)  # type: ignore[union-attr]
    return name


def check_ways(method: Method | None, classes: Sequence[str]) -> None:
    """Raise `ValueError` where the method cannot tell these classes apart: a network with a head takes as many as that."""
    if method is not None and method.objective.metric_name != "accuracy":
        raise ValueError(f"the checkpoint was not trained to classify: its metric is {method.objective.metric_name}")
    found = f"{len(classes)}: {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
    if len(classes) < 2:
        raise ValueError(f"at least 2 classes are needed, one sub-folder each; the support folder has {found}")
    outputs = getattr(getattr(method, "backbone", None), "out_features", None)
    if outputs is not None and outputs != len(classes):
        raise ValueError(
            f"the checkpoint takes exactly {outputs} classes, for its network has {outputs} outputs; the support folder has "
            f"{found}. Use another head on its features (--head {next(iter(HEADS))}), which takes any number, a checkpoint of "
            f"{len(classes)} ways (`data.ways` and `out_features`), or {outputs} sub-folders"
        )


def _check_share(unsure: float) -> None:
    if not 0 <= unsure <= 1:
        raise ValueError(f"unsure is {unsure}; it is a probability, from 0 to 1")


def _write(found: Outcome, classifier: Classifier, folder: Path) -> None:
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
    sheet.savefig(folder / SHEET, dpi=110)
    write_report(found, folder / REPORT)


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
