"""Folders of images, read so that the network sees what it saw in meta-training.

How the images of a data set were prepared stands in the checkpoint (see `mamllit.data.preparation`).
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mamllit.data.preparation import KNOWN, Preparation, border, preparation_of
from mamllit.data.sources.bounded import IMAGE, read_bytes
from mamllit.data.sources.pixels import FORMATS, opened, settled
from mamllit.data.sources.source import SHOWN, files_in, folders_below, folders_in, others_in, report, stamped

SUFFIXES = tuple(FORMATS)


def known_preparation(data: Mapping[str, Any]) -> Preparation:
    """How the images of a checkpoint's `data` were prepared.

    Raises:
        ValueError: for a DataModule that is not known and says nothing; its user says it with a `Preparation`.
    """
    if (found := preparation_of(data)) is None:
        raise ValueError(
            f"the checkpoint was trained with {data['class_path']}, whose image preparation is not known here (known: "
            f"{', '.join(KNOWN)}); set it in Python: Settings(preparation=Preparation(image_size, channels))"
        )
    return found


def prepare(image: Image.Image, how: Preparation) -> Tensor:
    """One picture as uint8 [C, S, S], 255 for 1; not yet normalised."""
    image = settled(image, how.channels, how.upright)
    if how.binary:
        image = image.point(lambda value: 255 if value > 127 else 0)
    pixels = np.array(image.resize((how.image_size, how.image_size), Image.Resampling(how.resample)))
    if how.invert:
        pixels = 255 - pixels
    return torch.from_numpy(pixels.reshape(how.image_size, how.image_size, how.channels)).permute(2, 0, 1)


def read_images(files: Sequence[Path], how: Preparation) -> Tensor:
    """The images of `files` as float32 [n, C, S, S] in [0, 1], not yet normalised.

    Raises:
        ValueError: for files that are no images of the `FORMATS` or cannot be read; all are listed, up to ten by name.
    """
    images, problems = [], []
    for file in files:
        try:
            with opened(read_bytes(file, IMAGE)) as image:
                images.append(prepare(image, how))
        except Exception as error:  # Pillow can raise nearly anything on a damaged file
            text = (isinstance(error, OSError) and error.strerror) or str(error).split(" <_io.")[0]
            plainly = isinstance(error, OSError | ValueError | SyntaxError) and text
            problems.append(f"{file}: {text if plainly else f'{type(error).__name__}: {text}'}")
    if problems:
        heading = f"images that cannot be read, {len(problems)} of {len(files)}"
        raise ValueError(report(heading, problems, f"Replace or remove them; {_formats()}."))
    return torch.stack(images).float() / 255


def as_ink(images: Tensor, how: Preparation) -> tuple[Tensor, Preparation]:
    """Images as `read_images` gives them, such that ink is 1 for weights that know it so, whichever way they are drawn.

    Omniglot's weights take dark on light and invert it. Light on dark must not be inverted: that is turned back, and `invert`
    is off in what is returned.
    """
    if how.invert and bool(border(images).mean() > 0.5):
        return 1 - images, replace(how, invert=False)
    return images, how


def support_files(folder: str | Path) -> dict[str, list[Path]]:
    """The images of each class, `folder/<class>/...`, classes and files in alphabetical order.

    Raises:
        FileNotFoundError: where there is no such folder, no sub-folder in it, or no image in a sub-folder.
    """
    root = _existing(folder, "support")
    classes = {path.name: images_below(path) for path in map(Path, folders_in(root))}
    if not classes:
        raise FileNotFoundError(f"the support folder {root} has no sub-folders; it needs one per class, named after the class")
    if empty := [name for name, files in classes.items() if not files]:
        raise FileNotFoundError(f"no images in these class folders of {root}: {', '.join(empty)}; {_formats()}")
    return classes


def query_files(folder: str | Path) -> list[Path]:
    """All images in a folder and the folders in it.

    Raises:
        FileNotFoundError: where there is no such folder, or no image.
    """
    root = _existing(folder, "query")
    if not (files := images_below(root)):
        raise FileNotFoundError(f"no images in the query folder {root} or the folders in it; {_formats()}")
    return files


def images_below(folder: Path) -> list[Path]:
    """Files with the ending of a format that is read, hidden ones left out, in alphabetical order; links are followed."""
    return sorted(Path(file.path) for below in folders_below(folder) for file in files_in(below, SUFFIXES))


def left_out(folder: str | Path) -> str:
    """The files in a folder and the folders in it that are not read, as "12 .psd, 1 .txt"; empty where there are none."""
    return others_in(folders_below(Path(folder).expanduser()), SUFFIXES)


def warnings_of(support: Mapping[str, Sequence[Path]], query: Sequence[Path]) -> list[str]:
    """What a user should know of images that are there twice, by their bytes: in support and query, or in two classes of the
    support."""
    named = [(name, file) for name, own in support.items() for file in own]
    same = _contents([*(file for _, file in named), *query])
    first: dict[object, tuple[str, Path]] = {}
    twice = []
    for name, file in named:
        other, at = first.setdefault(same[file], (name, file))
        if other != name:
            twice.append((at, file))
    leaks = [(first[same[file]][1], file) for file in query if same[file] in first]
    said = []
    if leaks:
        said.append(
            f"warning: {len(leaks)} of the {len(query)} query images are also support images, so their accuracy says "
            f"nothing about new images: {_pairs(leaks)}"
        )
    if twice:
        said.append(f"warning: {len(twice)} support images are in two classes: {_pairs(twice)}")
    return said


def _contents(files: Sequence[Path]) -> dict[Path, object]:
    """By file what is the same for files of the same bytes alone; only files whose size another has are read."""
    stamps = {file: stamped(file).stamp.split(" ")[0] for file in files}
    count = Counter(stamps.values())
    found: dict[Path, object] = {}
    for file, size in stamps.items():
        found[file] = file
        if count[size] > 1:
            with suppress(OSError, ValueError):  # broken links, pipes, what is too large: told when the images are read
                found[file] = hashlib.sha256(read_bytes(file, IMAGE)).digest()
    return found


def _pairs(pairs: Sequence[tuple[Path, Path]]) -> str:
    shown = [f"{first} = {second}" for first, second in pairs[:SHOWN]]
    return ", ".join(shown) + (f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else "")


def _existing(folder: str | Path, what: str) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the {what} folder {root} {'is not a folder' if root.exists() else 'does not exist'}")
    return root


def _formats() -> str:
    return f"images are the files that end in {', '.join(SUFFIXES)}"
