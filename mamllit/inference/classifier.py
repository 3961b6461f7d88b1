"""A classifier for somebody's own classes: the support, what it is seen by, and the head; fitted, used, saved and loaded.

A saved one is a single safetensors file with no code in it: the network's weights, the support as the head sees it (features,
or the small images that a checkpoint's network takes), thumbnails of the support for the report, and the settings as JSON. It
names no folder of the machine that it was made on. Adapting again takes milliseconds, so that no state of any method has to be
written down.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mamllit.core.episode import Episode, Examples
from mamllit.data.preparation import Preparation
from mamllit.engine.company import company
from mamllit.engine.cpu import fast_on_cpu
from mamllit.engine.evaluation import BatchNorm, predict
from mamllit.inference.features import TimmFeatures, from_state
from mamllit.inference.heads import AS_THEY_ARE, HEADS, FeaturesOf, Resemblance, equal_classes
from mamllit.inference.images import read_images
from mamllit.inference.outcome import HeadEstimate
from mamllit.inference.thumbnails import thumbnail
from mamllit.methods import Method
from mamllit.pretrained.build import rebuild
from mamllit.pretrained.files import SUFFIX, Checkpoint, digest, opened
from mamllit.runs import durable

KEY = "mamllit-classifier"
FORMAT = 2
AT_ONCE = 200  # query images predicted together where they do not depend on each other
NETWORK, SUPPORT, LABELS = "network.", "support", "labels"
PICTURES, SIZES = "pictures", "picture_sizes"  # JPEG files, one after the other, and their lengths in bytes


@dataclass(frozen=True, eq=False)
class CheckpointImages:
    """What a checkpoint's method sees: the images, prepared as in its training.

    Args:
        checkpoint: its description, and the `tensors` of its `method`.
        how: the preparation, of ink as these images have it.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Tensor]
    method: Method
    how: Preparation

    @property
    def name(self) -> str:
        return self.checkpoint.name

    def of_files(self, files: Sequence[Path], progress: bool = False) -> Tensor:
        return self.seen(read_images(files, self.how))

    def seen(self, images: Tensor) -> Tensor:
        """Images in [0, 1], normalised."""
        return (images - self.how.mean) / self.how.std


Seen = TimmFeatures | CheckpointImages


def own_name(method: Method) -> str:
    """How the head of a checkpoint is named that is its own method, e.g. "maml"."""
    return type(method).__name__.lower()


def candidates(seen: Seen) -> dict[str, Callable[[Tensor], Method]]:
    """The heads that can be used, by name, each made for the support's x [n, ...] as it is seen: on features all of `HEADS`; of
    a checkpoint its own method, first, and all of `HEADS` where its network has features."""
    if isinstance(seen, TimmFeatures):
        return {name: partial(_head, make, nn.Identity()) for name, make in HEADS.items()}
    method = seen.method
    own: dict[str, Callable[[Tensor], Method]] = {own_name(method): lambda x: method}
    features = features_of(method)
    if features is None:
        return own
    return own | {name: partial(_head, make, features) for name, make in HEADS.items() if name not in own}


def _head(make: Callable[[nn.Module, int], Method], features: nn.Module, x: Tensor) -> Method:
    with torch.no_grad():
        size = features(x[:1]).flatten(1).shape[1]
    return make(features, size)


def features_of(method: Method) -> nn.Module | None:
    """The features of a method's network; None where it has none that are known."""
    backbone = getattr(method, "backbone", None)
    if not isinstance(backbone, nn.Module):
        return None
    known = hasattr(backbone, "features") or method.reads_features or hasattr(backbone, "feature_size")
    return FeaturesOf(backbone).eval() if known else None


@dataclass(frozen=True, eq=False)
class Classifier:
    """A head that has adapted to N classes.

    Args:
        classes: the N names.
        files: of the n support images; their names alone, where it was loaded.
        names: of the n support images, below the support folder.
        support: as the head sees them, [n, D] or [n, C, S, S], labels in the order of `classes`.
        seen: what makes that of a picture.
        head: its name.
        method: the head itself.
        steps: inner steps; None for the head's own number.
        batch_norm: see `mamllit.engine.evaluation`.
        temperature: of the probabilities; None where they are not calibrated.
        estimates: of the head, and of others that it was compared with.
        pictures: thumbnails of the n support images, where it was loaded: it says on any machine what an image resembles.
        unsure: predictions of a lower probability are marked, unless one asks for another bound.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    names: tuple[str, ...]
    support: Examples
    seen: Seen
    head: str
    method: Method
    steps: int | None = None
    batch_norm: BatchNorm = "inductive"
    temperature: float | None = None
    estimates: tuple[HeadEstimate, ...] = ()
    pictures: tuple[bytes, ...] = ()
    unsure: float = 0.5

    def probabilities(self, x: Tensor) -> Tensor:
        """[M, N] for inputs as the head sees them."""
        logits = outputs(self.method, self.support, x, self.steps, self.batch_norm)
        return (logits / (self.temperature or 1.0)).softmax(-1)

    def nearest(self, x: Tensor) -> Tensor:
        """[M], index of the support image with the largest cosine of features; of pixels, where the network has no features."""
        backbone = nn.Identity() if isinstance(self.seen, TimmFeatures) else features_of(self.method_of_checkpoint)
        method = Resemblance(backbone or nn.Identity())
        return outputs(method, self.support, x, None, self.batch_norm).argmax(-1)

    @property
    def method_of_checkpoint(self) -> Method:
        assert isinstance(self.seen, CheckpointImages)
        return self.seen.method

    def save(self, path: str | Path) -> Path:
        """Write it as one file, whole or not at all.

        Raises:
            ValueError: for a name that does not end in .safetensors.
        """
        path, seen = check_name(path), self.seen
        entries: dict[str, Any] = {
            "format": FORMAT, "classes": self.classes, "names": self.names, "head": self.head,
            "steps": self.steps, "batch_norm": self.batch_norm, "temperature": self.temperature, "unsure": self.unsure,
            "estimates": [asdict(entry) for entry in self.estimates],
        }  # fmt: skip
        if isinstance(seen, TimmFeatures):
            entries["features"], weights = seen.as_dict(), seen.network.state_dict()
        else:
            entries["checkpoint"], weights = asdict(seen.checkpoint), dict(seen.tensors)
            entries["preparation"] = seen.how.as_dict()
        pictures = self.pictures or tuple(map(thumbnail, self.files))
        tensors = {SUPPORT: self.support.x, LABELS: self.support.y}
        tensors |= {
            PICTURES: torch.from_numpy(np.frombuffer(b"".join(pictures), np.uint8).copy()),
            SIZES: torch.tensor([*map(len, pictures)]),
        }
        tensors |= {f"{NETWORK}{name}": value for name, value in weights.items()}
        stored = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        entries = json.loads(json.dumps(entries))  # as a reader finds them
        entries["digest"] = digest(entries, stored)
        durable.write(path, save(stored, {KEY: json.dumps(entries)}))
        return path


def check_name(path: str | Path) -> Path:
    """The path of a classifier's file; `ValueError` where its name ends otherwise."""
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise ValueError(f"the classifier file is {path}; its name must end in {SUFFIX}")
    return path


def load_classifier(path: str | Path, trusted: Sequence[str] = ()) -> Classifier:
    """A classifier that `mamllit adapt --save` wrote; nothing in the file is run.

    Args:
        path: the file.
        trusted: as in `mamllit.pretrained.load`, for classifiers of a checkpoint.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a file that is damaged, or something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no classifier at {path}; `mamllit adapt --save FILE` writes one")
    metadata, stored = opened(path)
    if KEY not in metadata:
        raise ValueError(
            f"{path} is not a classifier: `mamllit adapt --save` did not write it (give a checkpoint as --checkpoint)"
        )
    try:
        entries = dict(json.loads(metadata[KEY]))
        if entries["format"] != FORMAT:
            newer = "install a newer one" if entries["format"] > FORMAT else "write it again with `mamllit adapt --save`"
            raise ValueError(f"its format is {entries['format']}, and this mamllit reads {FORMAT}: {newer}")
        if entries.pop("digest") != digest(entries, stored):
            raise ValueError("it has changed since it was written: its digest differs")
        return _loaded(entries, stored, trusted)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the classifier {path} cannot be used: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"the classifier {path} cannot be used: {error}") from error


def _loaded(entries: dict[str, Any], stored: dict[str, Tensor], trusted: Sequence[str]) -> Classifier:
    weights = {name.removeprefix(NETWORK): value for name, value in stored.items() if name.startswith(NETWORK)}
    seen: Seen
    if "features" in entries:
        seen = from_state(entries["features"], weights)
    else:
        checkpoint = Checkpoint(**entries["checkpoint"])
        method = rebuild(checkpoint, weights, trusted)
        seen = CheckpointImages(checkpoint, weights, method, Preparation(**entries["preparation"]))
    classes, names = tuple(entries["classes"]), tuple(entries["names"])
    sizes = stored[SIZES].tolist()
    pictures = tuple(part.numpy().tobytes() for part in stored[PICTURES].split(sizes))
    return Classifier(
        classes=classes,
        files=tuple(map(Path, names)),
        names=names,
        support=Examples(stored[SUPPORT], stored[LABELS], len(classes)),
        seen=seen,
        head=entries["head"],
        method=candidates(seen)[entries["head"]](stored[SUPPORT]),
        steps=entries["steps"],
        batch_norm=entries["batch_norm"],
        temperature=entries["temperature"],
        estimates=tuple(HeadEstimate(**{**entry, "ci95": tuple(entry["ci95"])}) for entry in entries["estimates"]),
        pictures=pictures,
        unsure=entries.get("unsure", 0.5),  # an older file does not say
    )


def weighed(method: Method, support: Examples) -> Examples:
    """The support with every class as large as the largest, by repeating images in turn, for a method in which larger classes
    would weigh more."""
    counts = torch.bincount(support.y, minlength=support.ways)
    if bool((counts == counts[0]).all()) or isinstance(method, AS_THEY_ARE):
        return support
    rows = equal_classes(support.y)
    return Examples(support.x[rows], support.y[rows], support.ways)


def outputs(method: Method, support: Examples, query_x: Tensor, steps: int | None, batch_norm: BatchNorm) -> Tensor:
    """Logits [n, N] of the query images, after `steps` inner steps on the support."""
    together = len(query_x) if batch_norm == "transductive" else AT_ONCE
    support = weighed(method, support)

    def unlabelled(x: Tensor) -> Examples:
        return Examples(x, torch.zeros(len(x), dtype=torch.int64), support.ways)

    # the gradients of the inner loop are torch.func's, which does not heed no_grad
    with torch.no_grad(), fast_on_cpu(support.x[None]):
        company(method, Episode(support, unlabelled(query_x)))
        state = method.adapt(support, steps)
        parts = [predict(method, state, Episode(support, unlabelled(part)), batch_norm) for part in query_x.split(together)]
    return torch.cat(parts)


def classify(method: Method, support: Examples, query_x: Tensor, steps: int | None, batch_norm: BatchNorm) -> Tensor:
    """Class probabilities [n, N] of the query images, after `steps` inner steps on the support."""
    return outputs(method, support, query_x, steps, batch_norm).softmax(-1)
