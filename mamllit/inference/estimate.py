"""How good a head is and how sure, from the support alone: every image is predicted by heads that have not seen it.

Leave-one-out up to 50 images, else ten folds in which every class has its share. An image that is the only one of its class
cannot be judged: without it the class is unknown. The temperature of the probabilities is fitted on the same predictions, so
that a head that is right in 70% of them says 70% on average.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mamllit.core.episode import Examples
from mamllit.inference.heads import BaselinePlusPlus, LogisticRegression
from mamllit.inference.outcome import HeadEstimate
from mamllit.inference.report import wilson
from mamllit.methods import Method

ONE_OUT = 50  # images up to which each is a fold of its own
FOLDS = 10
Predict = Callable[[Examples, Tensor], Tensor]  # logits [q, N] for inputs, by a head that knows these examples


def folds_of(labels: Tensor, folds: int | None = None, most: int = FOLDS) -> Tensor:
    """The fold of each image, [n]; -1 for the only image of a class. No fold has all images of a class.

    Args:
        labels: [n].
        folds: how many; None for leave-one-out up to 50 images, else `most`.

    Raises:
        ValueError: for fewer than 2.
    """
    if folds is not None and folds < 2:
        raise ValueError(f"folds is {folds}; it must be >= 2, or left out for leave-one-out of up to {ONE_OUT} images")
    generator = torch.Generator().manual_seed(0)
    found, place = torch.full_like(labels, -1), 0
    judged = int((torch.bincount(labels)[labels] > 1).sum())
    folds = min(judged if judged <= ONE_OUT and most >= FOLDS else most, judged) if folds is None else min(folds, judged)
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().flatten()
        if len(own) > 1:
            own = own[torch.randperm(len(own), generator=generator)]
            found[own] = (torch.arange(len(own)) + place) % folds
            place += len(own)
    return found


def fold_logits(method: Method, support: Examples, fold: Tensor, predict: Predict) -> Tensor:
    """Logits [judged, N] of the images whose `fold` is not -1, each by the head that was made without its fold."""
    rows = (fold >= 0).nonzero().flatten()
    count = int(fold.max()) + 1
    if isinstance(method, LogisticRegression | BaselinePlusPlus) and isinstance(method.backbone, nn.Identity):
        left_out = fold == torch.arange(count)[:, None]
        return method.without(support, left_out)[fold[rows], rows]
    found = torch.empty(len(fold), support.ways)
    for f in range(count):
        test = (fold == f).nonzero().flatten()
        known = (fold != f).nonzero().flatten()
        if len(test):
            found[test] = predict(Examples(support.x[known], support.y[known], support.ways), support.x[test])
    return found[rows]


def estimate(
    name: str, method: Method, support: Examples, predict: Predict, folds: int | None = None, most: int = FOLDS
) -> tuple[HeadEstimate, float] | None:
    """A head's estimate and its temperature; None where every class has a single image.

    Args:
        name: the head's.
        method, support: what is judged.
        predict: how it adapts and predicts.
        folds, most: see `folds_of`.
    """
    start, fold = time.perf_counter(), folds_of(support.y, folds, most)
    rows = (fold >= 0).nonzero().flatten()
    if not len(rows):
        return None
    logits = fold_logits(method, support, fold, predict)
    truth = support.y[rows]
    hits = int((logits.argmax(-1) == truth).sum())
    found = HeadEstimate(
        name, hits / len(rows), wilson(hits, len(rows)), int(fold.max()) + 1, len(rows), time.perf_counter() - start
    )
    return found, temperature(logits, truth)


def temperature(logits: Tensor, truth: Tensor) -> float:
    """T such that softmax(logits / T) fits n predictions best (C. Guo et al., On Calibration of Modern Neural Networks, 2017).

    The targets are (n + 1) / (n + N) for the right class and 1 / (n + N) for the others (J. Platt 1999, for N classes): n hits
    of n do not make a head sure of everything.
    """
    n, ways = logits.shape
    targets = torch.full_like(logits, 1 / (n + ways))
    targets[torch.arange(n), truth] = (n + 1) / (n + ways)

    def losses(values: Tensor) -> Tensor:
        return -(targets * (logits / values[:, None, None]).log_softmax(-1)).sum((1, 2))

    low, high = -4.0, 5.0  # powers of ten
    for _ in range(4):
        values = torch.logspace(low, high, 61, dtype=logits.dtype)
        best = int(losses(values).argmin())
        step = (high - low) / 60
        low, high = low + (best - 1) * step, low + (best + 1) * step
    return float(values[best])
