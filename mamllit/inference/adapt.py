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

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mamllit.core.episode import Examples
from mamllit.inference.classifier import CheckpointImages, Classifier, Seen, candidates, outputs, own_name, weighed
from mamllit.inference.estimate import FOLDS, estimate
from mamllit.inference.features import DEFAULT, TimmFeatures, timm_features
from mamllit.inference.heads import HEADS, STEPWISE, in_their_span
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
from mamllit.inference.settings import Settings
from mamllit.methods import Method
from mamllit.pretrained.build import rebuild
from mamllit.pretrained.files import read

BEST = "logistic"  # the head on features, where none is named
NETWORK_FOLDS = 5  # of an estimate where the whole network adapts in each
Support = str | Path | Mapping[str, Sequence[str | Path]]
Query = str | Path | Sequence[str | Path]


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
    return fitted(support, query, settings)[0]


def fitted(
    support: Support, query: Query, settings: Settings, ready: Callable[[], object] = lambda: None
) -> tuple[Outcome, Classifier]:
    """What was predicted, and by what; see `fewshot`. `ready` is called once the settings have been checked, before anything
    is computed."""
    start = time.perf_counter()
    loaded = None if settings.checkpoint is None else read(settings.checkpoint)
    by_class, files, root = _support(support)
    queries, query_root = _query(query)
    if root and query_root and query_root.absolute().parent == root.absolute():
        raise ValueError(
            f"the query folder {query_root} is a class folder of the support folder {root}: keep the two apart, as in "
            "new/support and new/query"
        )
    places = [place for place in (root, query_root) if place is not None]
    notes = [f"{place}: unsupported files skipped: {others}" for place in places if (others := left_out(place))]
    notes += warnings_of(by_class, queries)
    labels = torch.tensor([i for i, own in enumerate(by_class.values()) for _ in own])
    seen: Seen
    steps = settings.steps
    if loaded is None:
        seen = timm_features(settings.features or DEFAULT, settings.weights)
        name = _checked_head(settings.head, steps, seen, list(by_class))
        ready()
        x, problem = seen_of(seen, root, files, settings.cache_dir, settings.progress)
        query_x, other = seen_of(seen, query_root, queries, settings.cache_dir, settings.progress)
        notes += list(dict.fromkeys(text for text in (problem, other) if text))
    else:
        described, tensors = loaded
        method = rebuild(described, tensors, settings.trusted)
        how = known_preparation(described.data) if settings.preparation is None else settings.preparation
        seen = CheckpointImages(described, tensors, method, how)
        name = _checked_head(settings.head, steps, seen, list(by_class))
        ready()
        images = read_images([*files, *queries], how)  # together, so that all unreadable ones are told at once
        images, drawn = as_ink(images, how)
        if drawn != how:
            notes.append(
                f"the images are light on dark: they are not inverted, since {described.name} was trained with ink = 1"
            )
        seen = replace(seen, how=drawn)
        x, query_x = seen.seen(images[: len(files)]), seen.seen(images[len(files) :])
        steps = described.steps if steps is None and name == own_name(method) else steps
    classifier = Classifier(
        classes=tuple(by_class),
        files=tuple(files),
        names=_names(by_class, root),
        support=Examples(x, labels, len(by_class)),
        seen=seen,
        head=name,
        method=candidates(seen)[name](x),
        steps=steps,
        batch_norm=settings.batch_norm,
        unsure=settings.unsure,
    )
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
    return outcome(classifier, queries, query_x, query_root, settings.unsure, tuple(notes), start), classifier


def _estimated(classifier: Classifier, compare: bool, folds: int | None) -> Classifier:
    """With estimates, and the temperature of its head. Heads on features see them in the few coordinates of their span, where
    each learns the same in a fraction of the time."""
    found, support = {}, classifier.support
    if on_features := isinstance(classifier.seen, TimmFeatures):
        support = replace(support, x=in_their_span(support.x))
    for name, make in candidates(classifier.seen).items():
        if name != classifier.head and not compare:
            continue
        method = make(support.x)
        own = name == classifier.head
        steps = classifier.steps if own else None

        def predict(known: Examples, x: Tensor, method: Method = method, steps: int | None = steps) -> Tensor:
            return outputs(method, known, x, steps, "inductive")

        result = estimate(name, method, support, predict, folds, FOLDS if on_features else NETWORK_FOLDS)
        if result is None:
            return classifier
        found[name] = result
    own_estimate, temperature = found.pop(classifier.head)
    others = sorted((entry for entry, _ in found.values()), key=lambda entry: -entry.accuracy)
    return replace(classifier, temperature=temperature, estimates=(own_estimate, *others))


def outcome(
    classifier: Classifier,
    files: Sequence[Path],
    x: Tensor,
    root: Path | None,
    unsure: float,
    notes: tuple[str, ...],
    start: float,
) -> Outcome:
    """What a classifier predicts for `files` below `root`, `x` as it sees them."""
    classes = classifier.classes
    root = root.expanduser() if root else None
    below = [file.relative_to(root) if root else file for file in files]
    known = {unicodedata.normalize("NFC", name): name for name in classes}  # an accent may be a letter's part or its own
    parts = [[unicodedata.normalize("NFC", part) for part in reversed(file.parts[:-1])] for file in below]
    head = classifier.head
    if classifier.steps is not None and not isinstance(classifier.seen, TimmFeatures):
        head += f", {classifier.steps} inner step{'s' * (classifier.steps != 1)}, {classifier.batch_norm} batch norm"
    probabilities, nearest = classifier.probabilities(x), classifier.nearest(x)
    return Outcome(
        classes=classes,
        support=classifier.files,
        support_names=classifier.names,
        support_labels=classifier.support.y,
        query=tuple(files),
        probabilities=probabilities,
        nearest=nearest,
        truth=tuple(next((known[part] for part in own if part in known), None) for own in parts),
        head=head,
        features=classifier.seen.name,
        seconds=time.perf_counter() - start,
        unsure_below=unsure,
        estimates=classifier.estimates,
        temperature=classifier.temperature,
        root=root,
        pictures=classifier.pictures,
        notes=notes,
    )


def seen_of(
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
    alike: dict[str, str] = {}
    for name in by_class:
        if (other := alike.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise ValueError(f"two class names only look the same, {other!a} and {name!a}: rename one")
    return by_class, [file for own in by_class.values() for file in own], root


def _names(by_class: Mapping[str, Sequence[Path]], root: Path | None) -> tuple[str, ...]:
    """How the support images are named wherever they are: below the support folder, as "class/image.png"."""
    named = [(name, file) for name, own in by_class.items() for file in own]
    return tuple(file.relative_to(root).as_posix() if root else f"{name}/{file.name}" for name, file in named)


def _query(query: Query) -> tuple[list[Path], Path | None]:
    if isinstance(query, str | Path):
        return query_files(query), Path(query).expanduser()
    if not query:
        raise FileNotFoundError("no query images are given")
    return [Path(file).expanduser() for file in query], None


def _checked_head(head: str | None, steps: int | None, seen: Seen, classes: Sequence[str]) -> str:
    """The head's name; where none is given, the first of a checkpoint, or the best on features. `steps` needs inner steps."""
    known = candidates(seen)
    name = head or (BEST if isinstance(seen, TimmFeatures) else next(iter(known)))
    if name not in known:
        raise ValueError(f"head is {name!r}; the heads of {seen.name} are {', '.join(known)}")
    own = isinstance(seen, CheckpointImages) and name == own_name(seen.method)
    if steps is not None and not own and name not in STEPWISE:
        raise ValueError(f"steps is {steps}, but the head {name} takes no inner steps; those that do are {', '.join(STEPWISE)}")
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
            f"the checkpoint takes exactly {outputs} classes, since its network has {outputs} outputs; the support folder has "
            f"{found}. Use another head on its features (--head {next(iter(HEADS))}), which takes any number, a checkpoint for "
            f"{len(classes)} ways (`data.ways` and `out_features`), or {outputs} sub-folders"
        )
