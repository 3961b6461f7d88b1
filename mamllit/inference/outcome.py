"""What one adaptation to somebody's own images found: who is what, how sure that is, and from what it is known."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mamllit.runs import durable


@dataclass(frozen=True)
class HeadEstimate:
    """How often a head is right, estimated on the support itself: each image is predicted by a head that has not seen it.

    Args:
        head: its name, e.g. "logistic".
        accuracy: share of the judged images that were predicted rightly.
        ci95: lower and upper bound of the 95% interval (Wilson's, so that it is none of zero width at 100%).
        folds: parts that the support was cut into; as many as images for leave-one-out.
        images: judged images; those of a class with one image alone cannot be judged.
        seconds: for all folds.

    >>> from mamllit.inference.outcome import HeadEstimate
    >>> HeadEstimate("logistic", accuracy=0.9, ci95=(0.60, 0.98), folds=10, images=10, seconds=0.1).percent
    '90.0% (60.0 to 98.0)'
    """

    head: str
    accuracy: float
    ci95: tuple[float, float]
    folds: int
    images: int
    seconds: float

    @property
    def percent(self) -> str:
        """The accuracy and its interval, for people."""
        return "{:.1f}% ({:.1f} to {:.1f})".format(*(100 * share for share in (self.accuracy, *self.ci95)))


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions for M query images of N classes from n support images.

    Args:
        classes: the N names, in the order of the columns of `probabilities`.
        support: the n files; where a saved classifier predicts, their names alone.
        support_labels: [n], index of each one's class.
        query: the M files.
        probabilities: [M, N], of a softmax at `temperature`.
        nearest: [M], index of the support image whose features have the largest cosine with those of the query image.
        truth: per query image the class folder that it lies in, or None where that is no class of the support.
        head: what predicted, e.g. "logistic", or the method of a checkpoint.
        features: what it saw, e.g. "timm:tf_efficientnet_lite0", or the name of a checkpoint.
        seconds: from the files to the predictions.
        unsure_below: a prediction whose probability is lower is marked as unsure.
        estimates: of the head that was used, first; with `--compare` of all others too, best first. Empty where every class has
            one image alone.
        temperature: that makes the probabilities fit the hits of the folds; None where there was nothing to fit it on, and the
            probabilities are not calibrated.
        support_names: [n], how the support images are named in `predictions.csv`; the files where it is empty.
        root: the query folder, below which the files are named in `predictions.csv`.
        pictures: [n] thumbnails of the support images as JPEG files, where a saved classifier has brought them.
        notes: what a user should know: files that were not read, classes of different size, what could not be cached.

    >>> from pathlib import Path
    >>> import torch
    >>> from mamllit.inference.outcome import Outcome
    >>> found = Outcome(
    ...     classes=("cat", "dog"), support=(Path("cat/1.png"), Path("dog/1.png")), support_labels=torch.tensor([0, 1]),
    ...     query=(Path("new/a.png"),), probabilities=torch.tensor([[0.4, 0.6]]), nearest=torch.tensor([1]), truth=(None,),
    ...     head="logistic", features="timm:tf_efficientnet_lite0", seconds=0.1, unsure_below=0.7,
    ... )
    >>> found.labels, found.unsure.tolist(), found.chance
    (('dog',), [True], 0.5)
    """

    classes: tuple[str, ...]
    support: tuple[Path, ...]
    support_labels: Tensor
    query: tuple[Path, ...]
    probabilities: Tensor
    nearest: Tensor
    truth: tuple[str | None, ...]
    head: str
    features: str
    seconds: float
    unsure_below: float = 0.5
    estimates: tuple[HeadEstimate, ...] = ()
    temperature: float | None = None
    root: Path | None = None
    notes: tuple[str, ...] = ()
    support_names: tuple[str, ...] = ()
    pictures: tuple[bytes, ...] = ()

    @property
    def predicted(self) -> Tensor:
        """[M], index of each image's most probable class."""
        return self.probabilities.argmax(-1)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each image's most probable class."""
        return tuple(self.classes[i] for i in self.predicted.tolist())

    @property
    def unsure(self) -> Tensor:
        """[M], true where the largest probability is below `unsure_below`."""
        return self.probabilities.amax(-1) < self.unsure_below

    @property
    def chance(self) -> float:
        """The accuracy of guessing, 1 / N."""
        return 1 / len(self.classes)

    @property
    def hits(self) -> tuple[int, int]:
        """Images predicted rightly, of those whose class is known."""
        known = [(p, t) for p, t in zip(self.labels, self.truth, strict=True) if t is not None]
        return sum(p == t for p, t in known), len(known)

    @property
    def names(self) -> tuple[str, ...]:
        """The query files as they are named below `root`, with slashes."""
        return tuple((file.relative_to(self.root) if self.root else file).as_posix() for file in self.query)

    def write_csv(self, path: Path) -> None:
        """One row per query image: file, predicted and true class (empty if unknown), "unsure" or nothing, the nearest support
        image, and p(class) for every class."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["file", "predicted", "true", "unsure", "nearest", *(f"p({name})" for name in self.classes)])
        rows = zip(
            self.names, self.labels, self.truth, self.unsure.tolist(), self.nearest.tolist(), self.probabilities.tolist(),
            strict=True,
        )  # fmt: skip
        for name, label, truth, unsure, nearest, row in rows:
            reason = self.support_names[nearest] if self.support_names else self.support[nearest].as_posix()
            writer.writerow([name, label, truth or "", "unsure" * unsure, reason, *(f"{p:.6f}" for p in row)])
        durable.write(path, text.getvalue().encode("utf-8", "surrogateescape"))  # names keep their bytes, whatever they are


def readable(words: str) -> str:
    """Words from outside for a page or a terminal, also where a file's name is no text."""
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
