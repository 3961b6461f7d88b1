"""Folders of images, read so that the network sees what it saw in meta-training.

How the images of a data set were prepared stands in the checkpoint, in the arguments of its DataModule; `preparation_of`
reads it from there. Nothing here decides for the user.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mamllit.data.sources.pixels import plain

SHOWN = 10  # problems spelt out in an error


class Preparation(NamedTuple):
    """From a picture to the network's input: `image_size` x `image_size` pixels of `channels` (1 grey, 3 colour) in [0, 1].

    `resample` is Pillow's filter. `binary` makes every pixel black or white first, and `invert` turns dark on light into 1
    on 0, as for Omniglot's ink. `upright` turns a photograph as its EXIF orientation says. A picture that is not square is
    squeezed; transparency is put on white. Without `invert` and `binary` that is `mamllit.data.sources.pixels.decode_image`,
    for any format.
    """

    image_size: int
    channels: int
    resample: Image.Resampling = Image.Resampling.LANCZOS
    invert: bool = False
    binary: bool = False
    upright: bool = False


def _omniglot(arguments: Mapping[str, Any]) -> Preparation:
    if arguments["resize"] == "nearest":  # the paper's images are 1-bit
        return Preparation(28, 1, Image.Resampling.NEAREST, invert=True, binary=True)
    return Preparation(28, 1, invert=True)


def _mini_imagenet(arguments: Mapping[str, Any]) -> Preparation:
    return Preparation(int(arguments["image_size"]), 3)


def _image_folder(arguments: Mapping[str, Any]) -> Preparation:
    return Preparation(int(arguments["image_size"]), int(arguments["channels"]), upright=True)


PREPARATIONS: dict[str, Callable[[Mapping[str, Any]], Preparation]] = {
    "OmniglotDataModule": _omniglot,
    "MiniImagenetDataModule": _mini_imagenet,
    "ImageFolderDataModule": _image_folder,
}


def preparation_of(data: Mapping[str, Any]) -> Preparation:
    """How the images of a checkpoint's `data` were prepared.

    Raises:
        ValueError: for a DataModule that is not known here; its user says it with a `Preparation`.
    """
    name = data["class_path"].rsplit(".", 1)[-1]
    if name not in PREPARATIONS:
        raise ValueError(
            f"the checkpoint was trained with {data['class_path']}, and how that prepares an image is not known here (known: "
            f"{', '.join(PREPARATIONS)}); say it in Python: adapt_folder(..., preparation=Preparation(image_size, channels))"
        )
    return PREPARATIONS[name](data["init_args"])


def prepare(image: Image.Image, how: Preparation) -> Tensor:
    """One picture as uint8 [C, S, S], 255 for 1."""
    image = ImageOps.exif_transpose(image) if how.upright else image
    image = plain(image, "L" if how.channels == 1 else "RGB")
    if how.binary:
        image = image.point(lambda value: 255 if value > 127 else 0)
    pixels = np.array(image.resize((how.image_size, how.image_size), how.resample))
    if how.invert:
        pixels = 255 - pixels
    return torch.from_numpy(pixels.reshape(how.image_size, how.image_size, how.channels)).permute(2, 0, 1)


def read_images(files: Sequence[Path], how: Preparation) -> Tensor:
    """The images of `files` as float32 [n, C, S, S] in [0, 1].

    Raises:
        ValueError: for files that Pillow cannot read; all are listed, up to ten by name.
    """
    images, problems = [], []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(prepare(image, how))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            problems.append(f"{file}: {error}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        text = "\n  - ".join([f"images that cannot be read, {len(problems)} of {len(files)}:", *problems[:SHOWN], *more])
        raise ValueError(f"{text}\nReplace or remove them.")
    return torch.stack(images).float() / 255


def support_files(folder: str | Path) -> dict[str, list[Path]]:
    """The images of each class, `folder/<class>/...`, classes and files in alphabetical order.

    Raises:
        FileNotFoundError: where there is no such folder, no sub-folder in it, or no image in a sub-folder.
    """
    root = _existing(folder, "support")
    classes = {path.name: images_below(path) for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."}
    if not classes:
        raise FileNotFoundError(f"the support folder {root} has no sub-folders; it needs one per class, named as the class")
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
    """Files with the ending of a format that Pillow reads, hidden ones left out, in alphabetical order."""
    endings = _endings()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and path.is_file()
        and not any(p.startswith(".") for p in path.parts[len(folder.parts) :])
    )


def _existing(folder: str | Path, what: str) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the {what} folder {root} {'is not a folder' if root.exists() else 'does not exist'}")
    return root


def _endings() -> set[str]:
    return {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}


def _formats() -> str:
    return "images are the files that end in .png, .jpg, .jpeg, .webp, .bmp, .gif, .tif or another that Pillow reads"
