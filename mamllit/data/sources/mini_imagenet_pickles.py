"""mini-ImageNet as the three pickles of Ren et al. (2018), "Meta-Learning for Semi-Supervised Few-Shot Classification".

Each is a dict of `image_data`, uint8 [M, 84, 84, 3], and `class_dict`, class name -> positions. The copies that learn2learn put
on Zenodo are what `download: true` fetches. No checksum of theirs could be confirmed, so the server's own is taken where it
sends one, what arrived is recorded beside the file, and the contents are checked: 64 / 16 / 20 classes of 600 images.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mamllit.core.philox import SPLITS
from mamllit.data.sources.download import check_recorded, fetch
from mamllit.data.sources.pixels import to_pixels
from mamllit.data.sources.source import Classes, Item, Source, fingerprint, some, stamped
from mamllit.data.sources.unpickle import read_pickle

BASE_URL = "https://zenodo.org/record/7978538/files"
PICKLES = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}  # how their names end, by split
REMOTE = {"train": "train", "val": "validation", "test": "test"}
CLASSES = {"train": 64, "val": 16, "test": 20}
IMAGES = 600  # per class
SIDE = 84


def download_pickles(root: Path) -> None:
    """Fetch into `root` those of the three pickles that are not there."""
    for split, ending in REMOTE.items():
        if pickle_at(root, split) is None:
            name = f"mini-imagenet-cache-{ending}.pkl"
            fetch(f"{BASE_URL}/{name}", root / name, None)


def pickle_at(root: Path, split: str) -> Path | None:
    """Where the pickle of a split lies, under either name."""
    paths = [root / f"mini-imagenet-cache-{ending}.pkl" for ending in PICKLES[split]]
    return next((path for path in paths if path.is_file()), None)


def pickle_form(root: Path, size: int) -> Source | None:
    """The three pickles as a source; None if one is not there."""
    paths = {split: path for split in SPLITS if (path := pickle_at(root, split)) is not None}
    if len(paths) < len(SPLITS):
        return None
    pools: dict[str, Callable[[], Classes]] = {s: partial(_in_pickle, path, s, size) for s, path in paths.items()}
    return Source(
        name=f"mini-ImageNet in {root}: the pickles {', '.join(path.name for path in paths.values())}",
        fingerprint=fingerprint(f"pickles, {size}", root, map(stamped, paths.values())),
        shape=(3, size, size),
        images=sum(CLASSES.values()) * IMAGES,
        pools=pools,
        advice="Delete the damaged file and set `download: true`, or put an intact one there.",
    )


def _in_pickle(path: Path, split: str, size: int) -> Classes:
    """The images of one pickle: a dict of `image_data`, uint8 [M, 84, 84, 3], and `class_dict`, class name -> positions."""
    check_recorded(path)
    data = read_pickle(path)
    if not isinstance(data, dict) or not {"image_data", "class_dict"} <= set(data):
        raise ValueError(f"{path} holds {_kind(data)}; expected a dict with image_data and class_dict")
    images, classes = data["image_data"], data["class_dict"]
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1:] != (SIDE, SIDE, 3)
    ):
        raise ValueError(f"{path}: image_data is {_kind(images)}; expected uint8 [images, {SIDE}, {SIDE}, 3]")
    if not isinstance(classes, dict):
        raise ValueError(f"{path}: class_dict is {_kind(classes)}; expected a dict")
    if odd := [str(label)[:30] for label, listed in classes.items() if not _is_flat(listed)]:
        raise ValueError(f"{path}: class_dict has no list of positions for {some(odd, 3)}")
    positions = {str(label): np.asarray(listed) for label, listed in sorted(classes.items(), key=lambda pair: str(pair[0]))}
    flat = np.concatenate([np.ravel(listed) for listed in positions.values()]) if positions else np.zeros(0, np.int64)
    if flat.dtype.kind not in "iu" or sorted(flat.tolist()) != list(range(len(images))):
        raise ValueError(f"{path}: class_dict does not list each of the {len(images)} images exactly once")
    if len(positions) != CLASSES[split] or any(len(listed) != IMAGES for listed in positions.values()):
        raise ValueError(
            f"{path} has {len(images)} images in {len(positions)} classes, expected {CLASSES[split]} classes of {IMAGES}"
        )
    return {
        label: [Item(f"{path.name}, image {i}", partial(_pixels, images, i, size)) for i in listed.tolist()]
        for label, listed in positions.items()
    }


def _pixels(images: NDArray[np.uint8], i: int, size: int) -> NDArray[np.uint8]:
    if size == SIDE:
        return to_pixels(images[i])
    return to_pixels(np.asarray(Image.fromarray(images[i]).resize((size, size), Image.Resampling.LANCZOS)))


def _is_flat(listed: Any) -> bool:
    """Whether these are numbers in a row; a forged list of lists could be endless."""
    if isinstance(listed, np.ndarray):
        return True
    return isinstance(listed, list | tuple) and all(isinstance(position, int | np.integer) for position in listed)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a dict of {some([str(name)[:30] for name in value])}" if isinstance(value, dict) else f"a {type(value).__name__}"
